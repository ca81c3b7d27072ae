"""The image formats that are accepted, and how a file's content tells which it is, known without importing Pillow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from qdeploy.core.errors import InputError
from qdeploy.core.words import counted

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""By Pillow's names. A multi-picture JPEG (MPO) is a JPEG; PPM are also PGM and PBM."""
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif"}
)
"""What promises an image. A file with another suffix, or none, is one if its content says so."""
MAX_FILE_BYTES = 32 * 2**20
NO_IMAGE = "no image, left out"
"""What is said of a file that is none; they are counted by suffix where they are many."""
FIRST_TAKEN = "frames or pages was taken"
HEAD_BYTES = 32
"""As many of a file's first bytes tell its format."""

_LEFT_BEHIND = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
_UNFINISHED = frozenset({".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".download"})
"""What writers call a file until it is complete."""
_OTHER_NAMES = {"JPG": "JPEG", "MPO": "JPEG", "TIF": "TIFF", "PGM": "PPM", "PBM": "PPM", "PNM": "PPM"}
_MAGICS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_AVIF_BRANDS = frozenset({b"avif", b"avis", b"mif1", b"msf1"})
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
"""Sizes in bytes of the second header of a BMP, which tell it from a text that begins with BM."""


def chosen_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Return some of ``FORMATS`` by name, in any case, also as suffixes say it: jpg, tif, pgm.

    Raises:
        InputError: If one is unknown, or there is none.
    """
    chosen = []
    for name in names:
        word = name.strip().upper().removeprefix(".")
        word = _OTHER_NAMES.get(word, word)
        if word not in FORMATS:
            known = ", ".join(FORMATS).lower()
            raise InputError(f"`formats` must be some of {known}", found=repr(name))
        chosen.append(word)
    if not chosen:
        raise InputError("`formats` is empty; name at least one")
    return tuple(dict.fromkeys(chosen))


def formats_of_run(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return which formats a run takes by its configuration; None for all, as of runs that could not choose.

    Raises:
        InputError: If one is unknown.
    """
    text = str(config.get("formats") or "")
    return chosen_formats(text.split(",")) if text else None


def format_of(head: bytes) -> str | None:
    """Return which of ``FORMATS`` a file's first bytes begin, or None.

    Args:
        head: ``HEAD_BYTES`` or more; a whole file may be shorter.
    """
    for magic, name in _MAGICS.items():
        if head.startswith(magic):
            return name
    if head.startswith(b"RIFF"):
        return "WEBP" if head[8:12] == b"WEBP" else None
    if head.startswith(b"BM"):
        return "BMP" if int.from_bytes(head[14:18], "little") in _BMP_HEADERS else None
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in _AVIF_BRANDS and b"hei" not in head[16:] else None
    if head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and head[2:3].isspace():
        return "PPM" if head[2:].lstrip()[:1] in b"#0123456789" else None
    return None


def is_image_name(name: str) -> bool:
    """Return whether a file's suffix promises an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is taken for an image where a folder is read: by its suffix, or else by its content.

    A file whose suffix says that it is not complete yet is none. The content of a file whose suffix promises an image
    is not looked at here: one that is none is refused, with the reason, when it is decoded.

    Args:
        path: A regular file, or a link to one: others could wait for ever.

    Raises:
        OSError: If the content has to tell and cannot be read.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in SUFFIXES or suffix in _UNFINISHED:
        return suffix in SUFFIXES
    with open(path, "rb", buffering=0) as stream:
        return format_of(stream.read(HEAD_BYTES)) is not None


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's: hidden, or what a system or an archive leaves behind."""
    return name.startswith(".") or name.casefold() in _LEFT_BEHIND


def first_of(frames: int) -> str:
    """Return what is said of a file of several frames or pages."""
    return f"the first of {'several' if frames == 2 else f'{frames:,}'} {FIRST_TAKEN}"


def without_foreign(problems: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Tell the problems that concern images from the files that are none, which are counted by their suffix."""
    images: list[str] = []
    foreign: dict[str, int] = {}
    for problem in problems:
        path = problem.removesuffix(f": {NO_IMAGE}")
        if path == problem:
            images.append(problem)
        else:
            suffix = os.path.splitext(path)[1].lower()
            foreign[suffix] = foreign.get(suffix, 0) + 1
    return images, foreign


def foreign_words(foreign: dict[str, int]) -> str:
    """Say how many files are no images, by their suffix."""
    return f"{counted(sum(foreign.values()), 'file')} left out (no image): {suffix_counts(foreign)}"


def suffix_counts(counts: dict[str, int]) -> str:
    """Return files counted by their suffix as a text: ``.txt 12, .ogg 3, no suffix 1``."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{suffix or 'no suffix'} {n:,}" for suffix, n in ordered)
