from __future__ import annotations

import sys
import unicodedata

import pytest

from qdeploy.core.printable import printable

TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_every_character_is_shown_or_is_its_own_escape() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        shown = printable(character)
        if shown != character:
            assert shown.isascii()
            assert shown.isprintable()
            assert len(shown) in (2, 4, 6, 10)
        elif not 0xDCA0 <= number <= 0xDCFF:
            assert unicodedata.category(character) not in ("Cc", "Zl", "Zp", "Cs")
            assert unicodedata.bidirectional(character) not in TURNING


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a photo of caf\u00e9 \u732b.png", "a photo of caf\u00e9 \u732b.png"),
        ("C:\\photos\\new.png", "C:\\photos\\new.png"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x9b31m\x7f\0", "\\x9b31m\\x7f\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\U000e0041", "\\U000e0041"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("\udcff.png", "\udcff.png"),
        ("\udcc2\udc9b1m", "\udcc2\\x9b1m"),
    ],
)
def test_what_moves_a_cursor_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
