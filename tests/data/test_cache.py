from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdeploy.core.errors import DataError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data import cache as cache_module
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.data.source import Record
from tests.conftest import MakeImages
from tests.data.layouts import make_tiny_imagenet, zip_of


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of decoded images, for this test alone."""
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Everything that is decoded."""
    seen: list[object] = []
    original = Preprocessing.open

    def spy(self: Preprocessing, source: Path) -> Image.Image:
        seen.append(source)
        return original(self, source)

    monkeypatch.setattr(Preprocessing, "open", spy)
    return seen


def same(a: Dataset, b: Dataset) -> bool:
    return (
        (a.name, a.classes, a.preprocessing, a.problems, a.sha256)
        == (b.name, b.classes, b.preprocessing, b.problems, b.sha256)
        and all(np.array_equal(a.splits[s].pixels, b.splits[s].pixels) for s in a.splits)
        and all(np.array_equal(a.splits[s].labels, b.splits[s].labels) for s in a.splits)
        and all(a.splits[s].hashes == b.splits[s].hashes for s in a.splits)
    )


def test_a_second_load_decodes_nothing_and_is_the_same(
    image_folder: MakeImages, decoded: Path, opened: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(("a", "b", "c"), count=30)
    (root / "a" / "bad.png").write_text("no image")
    shutil.copy(root / "b" / "0.png", root / "b" / "again.png")
    in_memory = load_dataset(str(root), cache=False)
    assert not decoded.exists()
    first = load_dataset(str(root))
    assert len(opened) == 2 * 92
    monkeypatch.chdir(root.parent)
    second = load_dataset("images")
    assert len(opened) == 2 * 92
    assert same(first, in_memory)
    assert same(second, in_memory)
    assert first.notes == second.notes == ()
    assert len(first.problems) == 2
    assert first.cache == second.cache == next(decoded.glob("images-*"))


def test_pixels_are_plain_writable_arrays_and_the_file_stays_as_it_is(image_folder: MakeImages, decoded: Path) -> None:
    root = str(image_folder())
    for _ in range(2):  # decoded now, and opened
        pixels = load_dataset(root).splits["test"].pixels
        assert type(pixels) is np.ndarray
        assert pixels.flags.c_contiguous
        pixels[:] = 7
    assert (load_dataset(root).splits["test"].pixels != 7).any()


def test_a_changed_folder_is_read_again_and_only_what_changed(
    image_folder: MakeImages, decoded: Path, opened: list[object]
) -> None:
    root = image_folder(count=20)
    load_dataset(str(root))
    opened.clear()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(root / "cat" / "new.png")
    Image.new("RGB", (9, 9), (4, 5, 6)).save(root / "dog" / "3.png")
    (root / "cat" / "5.png").unlink()
    (root / "cat" / "6.png").rename(root / "dog" / "moved.png")
    changed = load_dataset(str(root))
    assert sorted(Path(str(p)).name for p in opened) == ["3.png", "moved.png", "new.png"]
    assert same(changed, load_dataset(str(root), cache=False))
    assert len(list(decoded.glob("images-*"))) == 1


def test_every_preprocessing_has_its_own(image_folder: MakeImages, decoded: Path, opened: list[object]) -> None:
    root = str(image_folder())
    sizes = (8, 16, 8)
    shapes = [load_dataset(root, Preprocessing(size=s)).splits["train"].pixels.shape[1] for s in sizes]
    assert tuple(shapes) == sizes
    assert len(opened) == 2 * 16


def test_an_archive_is_not_even_listed_again(decoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(make_tiny_imagenet(tmp_path))
    first = load_dataset(str(archive))
    monkeypatch.setattr("qdeploy.data.tiny_imagenet.ZipTree", None)
    with pytest.raises(TypeError):
        load_dataset(str(archive), cache=False)
    assert same(load_dataset(str(archive)), first)


def test_a_file_with_other_content_and_the_same_size_and_time_is_another(image_folder: MakeImages) -> None:
    """``cp -p`` and ``touch -r`` keep the time of the content; nobody can keep that of the state."""
    path = image_folder() / "cat" / "0.png"
    key = Record(path, 0).key
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert Record(path, 0).key != key


def test_what_could_not_be_read_once_is_there_again(
    image_folder: MakeImages, decoded: Path, opened: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(count=20)
    (root / "cat" / "torn.png").write_bytes((root / "cat" / "3.png").read_bytes()[:100])
    real, broken = os.open, str(root / "cat" / "3.png")

    def fails(path: str, *rest: Any, **named: Any) -> int:
        if os.fspath(path) == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        for tries in (41, 41):  # the second time is from the cache, and only the lost one is tried
            dataset = load_dataset(str(root))
            assert dataset.cache
            assert len(opened) == tries
            assert [p for p in dataset.problems if "torn" not in p] == [f"{broken}: cannot be read: Input/output error"]
    whole = load_dataset(str(root))
    assert [Path(str(p)).name for p in opened[41:]] == ["3.png", "torn.png"]
    assert len(whole.problems) == 1
    assert same(whole, load_dataset(str(root), cache=False))
    opened.clear()
    assert same(load_dataset(str(root)), whole)
    assert opened == []


def cut_pixels(folder: Path) -> None:
    os.truncate(folder / "pixels.npy", 1000)


def lengthen_pixels(folder: Path) -> None:
    with (folder / "pixels.npy").open("ab") as stream:
        stream.write(b"x")


def change_a_label(folder: Path) -> None:
    labels = np.load(folder / "labels.npy")
    labels[0] = 1 - labels[0]
    np.save(folder / "labels.npy", labels)


def remove_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def break_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"schema": 1')


def empty_meta(folder: Path) -> None:
    (folder / "meta.json").write_text(json.dumps({"schema": cache_module.SCHEMA}))


def list_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("[]")


def remove_hashes(folder: Path) -> None:
    (folder / "hashes.npy").unlink()


def pickle_hashes(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    np.save(folder / "hashes.npy", np.array([{}], dtype=object), allow_pickle=True)
    meta["sizes"]["hashes.npy"] = (folder / "hashes.npy").stat().st_size
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "damage",
    [
        cut_pixels,
        lengthen_pixels,
        change_a_label,
        remove_meta,
        break_meta,
        empty_meta,
        list_meta,
        remove_hashes,
        pickle_hashes,
    ],
)
def test_a_damaged_folder_is_made_again_with_a_note(
    image_folder: MakeImages, decoded: Path, damage: Callable[[Path], None]
) -> None:
    root = str(image_folder())
    first = load_dataset(root)
    assert first.cache
    damage(first.cache)
    again = load_dataset(root)
    assert len(again.notes) == 1
    assert "were damaged" in again.notes[0]
    assert "\n" not in again.notes[0]
    assert same(again, load_dataset(root, cache=False))
    assert load_dataset(root).notes == ()


def test_any_flipped_bit_of_a_header_is_noticed(image_folder: MakeImages, decoded: Path) -> None:
    root = str(image_folder(count=5))
    folder = load_dataset(root).cache
    assert folder
    rules = load_dataset(root).preprocessing
    noticed = 0
    for file in folder.glob("*.npy"):
        whole = file.read_bytes()
        for place in range(0, 128 * 8, 3):
            broken = bytearray(whole)
            broken[place // 8] ^= 1 << place % 8
            file.write_bytes(broken)
            kept, notes = cache_module._try_open(folder, rules)
            noticed += kept is None
            assert all("\n" not in note for note in notes)
        file.write_bytes(whole)
    assert noticed > 300


def test_a_folder_of_another_version_is_made_again_silently(image_folder: MakeImages, decoded: Path) -> None:
    root = str(image_folder())
    folder = load_dataset(root).cache
    assert folder
    (folder / "meta.json").write_text('{"schema": 0}')
    assert load_dataset(root).notes == ()
    assert json.loads((folder / "meta.json").read_text())["schema"] == cache_module.SCHEMA


def test_without_a_place_to_write_it_works_in_memory(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(image_folder())
    for place in (tmp_path / "file", Path("/proc/none")):
        (tmp_path / "file").touch()
        monkeypatch.setenv("QDEPLOY_CACHE", str(place))
        dataset = load_dataset(root)
        assert same(dataset, load_dataset(root, cache=False))
        assert dataset.cache is None
        assert [n.partition(",")[0] for n in dataset.notes] == ["decoded images are not kept"]


@pytest.mark.parametrize("step", ["posix_fallocate", "fsync", "replace"])
def test_a_full_disk_is_noted_and_nothing_is_left(
    image_folder: MakeImages, decoded: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    root = str(image_folder())
    expected = load_dataset(root, cache=False)
    monkeypatch.setattr(os, step, fail)
    dataset = load_dataset(root)
    assert same(dataset, expected)
    assert "No space left on device" in dataset.notes[0]
    assert {p.suffix for p in decoded.iterdir()} <= {".lock"}  # some releases of filelock leave it


def test_bad_data_leaves_nothing(image_folder: MakeImages, decoded: Path) -> None:
    root = image_folder(count=2)
    with pytest.raises(DataError, match="too few images"):
        load_dataset(str(root))
    assert {p.suffix for p in decoded.iterdir()} <= {".lock"}


SLOW = """
import sys, time
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
original, seen = Preprocessing.open, []
def slow(self, source):
    seen.append(source)
    if len(seen) > 20:
        print("half", flush=True)
        time.sleep(60)
    return original(self, source)
Preprocessing.open = slow
load_dataset(sys.argv[1])
"""


def test_a_killed_build_leaves_nothing_usable_and_the_next_one_cleans_up(
    image_folder: MakeImages, decoded: Path, opened: list[object]
) -> None:
    root = str(image_folder(count=30))
    with subprocess.Popen([sys.executable, "-c", SLOW, root], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    (left,) = (p for p in decoded.iterdir() if p.is_dir())
    assert left.name.startswith(".images-")
    dataset = load_dataset(root)
    assert len(opened) == 60
    assert dataset.notes == ()
    assert [p for p in decoded.iterdir() if p.is_dir()] == [dataset.cache]
    assert same(load_dataset(root), load_dataset(root, cache=False))


def test_a_build_that_is_interrupted_keeps_the_old_one(image_folder: MakeImages, decoded: Path) -> None:
    root = image_folder()
    folder = load_dataset(str(root)).cache
    assert folder
    before = (folder / "meta.json").read_bytes()
    Image.new("RGB", (9, 9)).save(root / "cat" / "new.png")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_dataset(str(root), progress=interrupt)
    assert (folder / "meta.json").read_bytes() == before
    assert [p for p in decoded.iterdir() if p.is_dir()] == [folder]


def test_two_loads_at_once_decode_once(image_folder: MakeImages, decoded: Path, opened: list[object]) -> None:
    root = str(image_folder(count=40))
    results: list[Dataset] = []

    def load() -> None:
        results.append(load_dataset(root, progress=lambda done, total: time.sleep(0.05)))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 80
    assert same(results[0], results[2])
