"""Text from elsewhere - names of files, labels, cards, servers' answers - made safe to print on a terminal."""

from __future__ import annotations

_JOINERS = "\u200c\u200d"
"""Format characters that Persian, Hindi and emoji are written with, and that move nothing."""


def printable(text: str) -> str:
    r"""Return a text in which nothing moves a cursor, begins a line or turns the direction of reading.

    Control characters, terminal escapes, line ends, bidirectional marks and what no font shows stand as ``\x1b`` or
    ``\u202e``; a backslash stays as it is, so that paths stay readable. Bytes of a file name that are no text pass.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS or _is_byte(c) else _escape(c) for c in text)


def _is_byte(character: str) -> bool:
    """Tell what Python makes of a byte above 127 in a name that is no text; as a byte, C1 controls are not passed."""
    return "\udca0" <= character <= "\udcff"


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        number -= 0xDC00
    if number > 0xFFFF:
        return f"\\U{number:08x}"
    return f"\\u{number:04x}" if number > 0xFF else {9: "\\t", 10: "\\n", 13: "\\r"}.get(number, f"\\x{number:02x}")
