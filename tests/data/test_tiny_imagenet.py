from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import DataError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data import tiny_imagenet
from qdeploy.data.catalog import find_place, load_dataset, location_of
from qdeploy.data.download import Checksum
from tests.data.layouts import WNIDS, make_tiny_imagenet, zip_of
from tests.data.web import serving


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somewhere").mkdir()
    return make_tiny_imagenet(tmp_path / "somewhere")


def test_the_published_layout_gives_the_paper_s_splits(root: Path) -> None:
    dataset = load_dataset(str(root))
    assert dataset.name == "tiny-imagenet"
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 48, "val": 12, "test": 12}
    for split in dataset.splits.values():
        assert len(set(np.bincount(split.labels))) == 1
    assert dataset.problems == ()
    test = dataset.splits["test"]
    assert test.labels.tolist() == [0, 1, 2, 3] * 3
    for i in (0, 11):
        assert np.array_equal(test.pixels[i], Preprocessing()(root / "val" / "images" / f"val_{i}.JPEG"))


def test_classes_are_in_the_order_of_wnids_with_names_for_people(root: Path) -> None:
    (root / "words.txt").write_text((root / "words.txt").read_text().replace("n02124075", "n99999999"))
    assert WNIDS == ("n02124075", "n01443537", "n03126707", "n04067472")
    assert load_dataset(str(root)).classes == ("n02124075", "goldfish", "crane (n03126707)", "crane (n04067472)")


def test_the_zip_and_its_folder_are_the_same_data(root: Path) -> None:
    archive = zip_of(root)
    assert load_dataset(str(archive)).sha256 == load_dataset(str(root)).sha256
    assert location_of("somewhere/tiny-imagenet-200.zip") == str(archive)


@pytest.mark.parametrize(
    "place",
    [
        "data/tiny-imagenet",
        "data/tiny-imagenet-200.zip",
        "tiny-imagenet-200",
        "tiny-imagenet/tiny-imagenet-200.zip",
        "cache/tiny-imagenet/tiny-imagenet-200.zip",
    ],
)
def test_it_is_found_by_name_in_the_usual_places(root: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (zip_of(root) if place.endswith(".zip") else root).rename(tmp_path / place)
    assert find_place("tiny-imagenet").path == tmp_path / place
    assert location_of("tiny-imagenet") == "tiny-imagenet"


def test_it_is_fetched_as_a_zip(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(root)
    digest = Checksum(kind="md5", hex="").of(archive)
    monkeypatch.setattr(tiny_imagenet, "CHECKSUM", Checksum(kind="md5", hex=digest))
    with serving() as web:
        web.files[archive.name] = archive.read_bytes()
        monkeypatch.setattr(tiny_imagenet, "URL", web.url + archive.name)
        path = tiny_imagenet.fetch_tiny_imagenet(web.url + archive.name)
    assert find_place("tiny-imagenet").path == path == tmp_path / "cache" / "tiny-imagenet" / archive.name
    assert len(load_dataset("tiny-imagenet").splits["test"]) == 12


def remove_class(root: Path) -> None:
    shutil.rmtree(root / "train" / WNIDS[2])


def remove_image(root: Path) -> None:
    (root / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_3.JPEG").unlink()


def remove_annotations(root: Path) -> None:
    (root / "val" / "val_annotations.txt").unlink()


def remove_validation_image(root: Path) -> None:
    (root / "val" / "images" / "val_5.JPEG").unlink()


def annotate_an_unknown_class(root: Path) -> None:
    with (root / "val" / "val_annotations.txt").open("a") as stream:
        stream.write("val_3.JPEG\tn00000000\t0\t0\t1\t1\n")


def add_a_class(root: Path) -> None:
    (root / "train" / "n00000000" / "images").mkdir(parents=True)
    (root / "train" / "n00000000" / "images" / "a.JPEG").touch()


def repeat_a_class(root: Path) -> None:
    (root / "wnids.txt").write_text("\n".join([*WNIDS, WNIDS[0]]))


DAMAGE = [
    (remove_class, "no images in train/n03126707/images"),
    (remove_image, "lacks 1 image of train/n01443537/images, e.g. n01443537_3.JPEG"),
    (remove_annotations, "has no val/val_annotations.txt"),
    (remove_validation_image, "names val_5.JPEG, which val/images does not have"),
    (annotate_an_unknown_class, "gives val_3.JPEG the class 'n00000000'"),
    (add_a_class, "a folder train/n00000000 that wnids.txt does not name"),
    (repeat_a_class, "names a class twice"),
]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(("damage", "text"), DAMAGE, ids=lambda x: getattr(x, "__name__", ""))
def test_what_is_incomplete_is_refused_with_a_reason(
    root: Path, damage: Callable[[Path], None], text: str, packed: bool
) -> None:
    damage(root)
    with pytest.raises(DataError, match=text) as caught:
        load_dataset(str(zip_of(root) if packed else root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_zip_that_is_cut_off_is_refused(root: Path, tmp_path: Path, share: float) -> None:
    archive = zip_of(root)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"tiny-imagenet-200.zip is damaged or incomplete .*; delete it"):
        load_dataset(str(archive))
    assert not (tmp_path / "cache").exists()


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-x").mkdir()
    (tmp_path / "tiny-imagenet-x" / "a.txt").touch()
    with pytest.raises(DataError, match="has no wnids.txt"):
        load_dataset(str(zip_of(tmp_path / "tiny-imagenet-x")))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="is a file, not a folder"):
        load_dataset(str(zip_of(tmp_path / "other")))


def test_damaged_images_inside_the_zip_are_listed(root: Path) -> None:
    folder = root / "train" / WNIDS[0] / "images"
    (folder / f"{WNIDS[0]}_4.JPEG").write_bytes(b"no image")
    whole = (folder / f"{WNIDS[0]}_5.JPEG").read_bytes()
    archive = zip_of(root)
    data = archive.read_bytes()
    at = data.index(whole) + len(whole) // 2
    archive.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    problems = load_dataset(str(archive)).problems
    assert [p.partition(": ")[0].rpartition("/")[2] for p in problems] == ["n02124075_4.JPEG", "n02124075_5.JPEG"]
    assert "cannot be read from the archive: Bad CRC-32" in problems[1]
