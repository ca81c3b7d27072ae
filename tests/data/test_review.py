"""Collected images labelled on the page in a real Chromium, and sorted into a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from qdeploy.cli.main import run
from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of, write_json
from qdeploy.data.catalog import load_dataset
from qdeploy.data.review.sorting import folder_name
from tests.browser import open_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.xdist_group("page of review")
LABELS = ("bag", "boot/high", "coat", "<b>dress</b>", *(f"kind {i}" for i in range(8)), "shirt")
"""The tenth and later have letters."""


def fill(folder: Path, count: int = 8) -> list[str]:
    """Fill a folder as a server does; the images' hashes in the order of the page."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    hashes = []
    for i in range(count):
        path = folder / "image.png"
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), np.uint8)).save(path)
        digest = sha256_of(path.read_bytes())
        path.rename(folder / f"{digest}.png")
        said = {
            "image": f"{digest}.png",
            "why": "unknown" if i < 2 else "uncertain" if i < 5 else "random",
            "label": "unknown" if i < 2 else "coat",
            "would_be": "coat",
            "probability": 0.1 + i / 10,
            "time": "2026-11-29T18:00:00.000+00:00",
            "labels": list(LABELS),
        }
        write_json(folder / f"{digest}.json", said)
        hashes.append(digest)
    return hashes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_chromium() as browser:
        yield browser


def opened(browser: Browser, file: Path, **options: Any) -> tuple[Page, list[str]]:
    """Open a page without a network; its problems and what it asks for are in the list."""
    context = browser.new_context(accept_downloads=True, **options)
    context.set_offline(True)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.goto(file.as_uri())
    return page, problems


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def downloaded(page: Page, file: Path, key: str = "Control+s") -> Any:
    with page.expect_download() as info:
        page.keyboard.press(key)
    assert info.value.suggested_filename == "labels.json"
    info.value.save_as(file)
    return json.loads(file.read_text())


def test_a_person_labels_by_keyboard_and_the_images_are_sorted(
    browser: Browser, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = fill(place / "collected")
    assert run(["review", "collected"]) == 0
    assert "review.html: 8 images, 13 labels" in capsys.readouterr().out
    page, problems = opened(browser, place / "review.html")
    assert page.text_content("h1") == "8 images to label"
    assert "the model called it unknown" in (page.text_content("#card") or "")
    page.wait_for_selector("#card img.small")
    assert page.locator("#labels button").count() == len(LABELS)
    assert page.text_content("#labels button.guess span") == "coat"
    press(page, "1", "2", "Enter", "d", "Space", "-", "4")  # bag, boot/high, coat, shirt, skipped, none, dress
    assert page.text_content("#count") == "8 of 8, 6 labelled"
    press(page, "ArrowLeft", "Backspace")
    assert page.text_content("#count") == "6 of 8, 4 labelled"
    press(page, "-", "3", "3")
    assert page.text_content("#count") == "all 8 seen, 7 labelled"
    expected = ["bag", "boot/high", "coat", "shirt", None, None, "coat", "coat"]
    rows = downloaded(page, place / "labels.json")["labelled"]
    labelled = {h: label for i, (h, label) in enumerate(zip(hashes, expected, strict=True)) if i != 4}
    assert {row["sha256"]: row["label"] for row in rows} == labelled
    page.reload()
    assert page.text_content("#count") == "5 of 8, 7 labelled"  # the skipped one is the first that is open
    assert problems == []
    page.context.close()

    words = ["review", "collected", "--labels", "labels.json", "--out", "more"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == {"bag": 1, "boot-high": 1, "coat": 3, "shirt": 1}
    assert (found["written"], found["there"], found["none"], found["unlabelled"]) == (6, 0, 1, 1)
    assert found["notes"] == ["the images of 'boot/high' are in the folder 'boot-high'"]
    for digest, label in labelled.items():
        if label:
            copy = place / "more" / label.replace("/", "-") / f"{digest}.png"
            assert sha256_of(copy.read_bytes()) == digest
    assert run(words) == 0
    assert "0 images written, 6 were there" in capsys.readouterr().out


def test_labels_are_found_by_typing_and_with_the_mouse(browser: Browser, place: Path) -> None:
    hashes = fill(place / "collected", 3)
    assert run(["review", "collected", "--label", "new kind"]) == 0
    page, problems = opened(browser, place / "review.html", viewport={"width": 360, "height": 640})
    press(page, "/")
    page.keyboard.type("new")
    assert page.locator("#labels button").count() == 1
    press(page, "Enter", "1")
    page.click("#labels button:has-text('kind 3')")
    page.click("#undo")
    press(page, "Space")  # skips: the mouse leaves no focus behind
    assert page.text_content("#count") == "all 3 seen, 2 labelled"
    page.focus("#undo")
    press(page, "Enter")  # a button that Tab has reached does what it says
    assert page.text_content("#count") == "3 of 3, 2 labelled"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    rows = downloaded(page, place / "labels.json")["labelled"]
    assert {row["sha256"]: row["label"] for row in rows} == {hashes[0]: "new kind", hashes[1]: "bag"}
    assert problems == []
    page.context.close()


def test_names_are_no_markup(browser: Browser, place: Path) -> None:
    hurt = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"
    fill(place / "collected", 1)
    assert run(["review", "collected", "--label", hurt]) == 0
    page, problems = opened(browser, place / "review.html")
    assert hurt in page.locator("#labels button span").all_text_contents()
    assert page.evaluate("window.hurt") is None
    assert problems == []
    page.context.close()


def labels_file(place: Path, *labelled: tuple[str, str | None]) -> Path:
    rows = [{"image": "x", "sha256": digest, "label": label} for digest, label in labelled]
    write_json(place / "labels.json", {"schema": 1, "labelled": rows})
    return place / "labels.json"


def test_a_data_set_takes_the_images_beside_its_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = fill(place / "collected")
    rng = np.random.default_rng(1)
    for split in ("train", "val", "test"):
        for label in ("bag", "coat"):
            (place / "data" / split / label).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
                Image.fromarray(pixels).save(place / "data" / split / label / f"{i}.png")
    labels_file(place, (hashes[0], "bag"), (hashes[1], "coat"), ("0" * 64, "coat"))
    assert run(["review", "collected", "--labels", "labels.json", "--out", "data"]) == 0
    captured = capsys.readouterr()
    assert "1 labelled image not in the folder" in captured.err
    dataset = load_dataset(str(place / "data"))
    assert dataset.classes == ("bag", "coat")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 8, "val": 6, "test": 6}


def test_images_that_no_server_kept_need_labels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "photos").mkdir()
    Image.new("RGB", (900, 600), "red").save(place / "photos" / "red.jpg")
    (place / "photos" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run(["review", "photos"]) == 2
    assert "name them: --label cat" in capsys.readouterr().err
    assert run(["review", "photos", "--label", "a", "--label", "b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["labels"]) == (1, ["a", "b"])
    assert "torn.png" in found["problems"][0]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("[]", "holds no labels of a review page"),
        ('{"schema": 2, "labelled": []}', "its schema is 2, known is 1"),
        ('{"schema": 1, "labelled": [{"sha256": "a", "label": ".."}]}', "no folder of a data set can be named"),
        ('{"schema": 1, "labelled": [{"sha256": "a", "label": 3}]}', "is no str"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_file_of_labels_that_is_none_is_refused(
    document: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(place / "collected", 1)
    (place / "labels.json").write_text(document)
    assert run(["review", "collected", "--labels", "labels.json", "--out", "data"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (place / "data").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["collected", "--labels", "labels.json"], "--labels needs --out"),
        (["empty"], "there is no image to label"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(place / "collected", 1)
    (place / "empty").mkdir()
    assert run(["review", *words]) == 2
    assert said in capsys.readouterr().err
    (place / "review.html").touch()
    assert run(["review", "collected"]) == 2
    assert "review.html exists" in capsys.readouterr().err


@pytest.mark.parametrize("label", ["", " ", ".", "..", ".hidden", "a\nb", "x" * 300])
def test_no_folder_is_named_so(label: str) -> None:
    with pytest.raises(InputError, match="no folder of a data set can be named"):
        folder_name(label)
