from __future__ import annotations

import glob
import os
import random
import resource
import shutil
from pathlib import Path

import pytest

from qdeploy.core.image import image_bytes
from qdeploy.core.listing import Found, Kind, matches, walk
from qdeploy.serve.sources.watch import Folder, Remembered

BAG = Path(__file__).parents[2] / "examples" / "bag.png"
PNG = b"\x89PNG\r\n\x1a\n"


def found(folder: Path) -> dict[str, Found]:
    everything = list(walk(str(folder)))
    by_name = {str(Path(f.path).relative_to(folder)): f for f in everything}
    assert len(by_name) == len(everything)
    return by_name


def test_whatever_is_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.jpg", "c", "d.txt", ".hidden.png", "e.png.part"):
        (folder / name).write_bytes(PNG if name != "d.txt" else b"text")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe")
    links = {
        **{"good.png": "a.png", "gone.png": "nowhere", "gone": "nowhere", "loop.png": "loop.png"},
        **{"zero.png": "/dev/zero", "null": "/dev/null", "self": ".", "beyond": "a.png/x"},
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    everything = found(folder)
    assert {n: (f.kind, f.reason) for n, f in everything.items()} == {
        **dict.fromkeys(("a.png", "sub/b.jpg", "c", "good.png"), (Kind.IMAGE, None)),
        **dict.fromkeys(("d.txt", "e.png.part", "pipe", "null"), (Kind.OTHER, None)),
        **dict.fromkeys(("pipe.png", "zero.png"), (Kind.LOST, "not-a-file")),
        **dict.fromkeys(("gone.png", "gone", "loop.png"), (Kind.LOST, "not-found")),
        "beyond": (Kind.LOST, "unreadable"),
        "self": (Kind.LINKED, None),
    }
    assert {n: f.why for n, f in everything.items() if f.kind is Kind.LOST} == {
        **dict.fromkeys(("pipe.png", "zero.png"), "is not a regular file"),
        **dict.fromkeys(("gone.png", "gone"), "leads to no file"),
        **{"loop.png": "leads to itself", "beyond": "cannot be read: Not a directory"},
    }
    assert list(everything) == sorted(everything)


def test_a_folder_that_is_none_is_what_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [(f.kind, f.reason) for f in walk(str(tmp_path / "file"))] == [(Kind.LOST, "unreadable")]
    assert [(f.kind, f.reason) for f in walk(str(tmp_path / "none"))] == [(Kind.LOST, "not-found")]


PATTERNS = (
    *("*", "**", "*/*", "**/*", "**/*.png", "a*/**", "a*/**/c*", "**/[ab]*/*", ".*", ".*/*", "**/**", "**/b/**/*"),
    *("?", "[!a]*", "a/*", "a/../a/*", "none/*", "*.png/x", "**/.*"),
)


def test_globs_match_as_those_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    folders = [tmp_path]
    for _ in range(60):
        path = rng.choice(folders) / (rng.choice(("", "", "", ".")) + rng.choice("abcABC") + str(rng.randrange(3)))
        if rng.random() < 0.4:
            path.mkdir(exist_ok=True)
            folders.append(path)
        elif not path.exists():
            path.with_suffix(".png").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    monkeypatch.chdir(tmp_path)
    for pattern in PATTERNS:
        for whole in (pattern, str(tmp_path / pattern)):
            expected = {os.path.normpath(p) for p in glob.glob(whole, recursive=True)}
            answer = matches(whole)
            assert {os.path.normpath(p) for p in answer} - {os.path.normpath(tmp_path)} == expected - {
                os.path.normpath(tmp_path)
            }, pattern
            assert answer == sorted(set(answer))


def test_links_that_lead_to_their_own_folder_have_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.png").touch()
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(".")
    assert [Path(p).name for p in matches(f"{tmp_path}/**/*.png")] == ["a.png", "c.png"]
    assert {Path(p).name for p in matches(f"{tmp_path}/**")} == {tmp_path.name, "a.png", "b", "c.png", "one", "two"}


def test_too_many_open_files_are_no_fault_of_a_folder_or_an_image(tmp_path: Path) -> None:
    shutil.copy(BAG, tmp_path / "bag.png")
    watched = Folder(str(tmp_path), Remembered())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # those that are open stay so
    try:
        for read in (lambda: list(walk(str(tmp_path))), lambda: image_bytes(tmp_path / "bag.png")):
            with pytest.raises(OSError, match="Too many open files"):
                read()
        assert watched.look() == []
        assert watched.problem is not None
        assert watched.problem.why == "cannot be read: Too many open files"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    watched.look()
    assert watched.problem is None
