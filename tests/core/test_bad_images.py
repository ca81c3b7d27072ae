"""Every image between two good ones: it gives the right pixels or a reason, and its neighbours do not notice."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import qdeploy
from qdeploy.core.errors import ImageError, ImageReason
from qdeploy.core.image import decode
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.runtime.classifier import Classifier
from qdeploy.runtime.predict import Answer, predict_files
from tests.core.bad_images import JPEG, PNG, READABLE, REFUSED, WHITE, encoded, quarters

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = (EXAMPLES / "bag.png", EXAMPLES / "trouser.png")
LOSSY = 6
"""Units of 255."""


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return qdeploy.load()


def between(classifier: Classifier, *paths: str | Path) -> list[Answer]:
    """Classify images between two good ones, check the good ones' answers, and give the others'."""
    first, *middle, last = predict_files(classifier, [str(GOOD[0]), *map(str, paths), str(GOOD[1])], len(paths) + 2)
    for answer, path in zip((first, last), GOOD, strict=True):
        assert answer.prediction is not None
        alone = classifier(path)
        assert answer.prediction.label == alone.label
        assert np.allclose(answer.prediction.probabilities, alone.probabilities, atol=1e-3)
    assert len(middle) == len(paths)
    return middle


def refused(answer: Answer) -> str:
    """Check that an answer is a one-line refusal and give its reason."""
    assert answer.prediction is None
    assert answer.error
    assert "\n" not in answer.error
    line = answer.to_dict(1)
    assert set(line) == {"image", "error", "reason"}
    assert line["reason"] in get_args(ImageReason)
    return str(line["reason"])


@pytest.mark.parametrize("name", READABLE)
def test_what_can_be_read_is_read_right(name: str, classifier: Classifier, tmp_path: Path) -> None:
    data, expected = READABLE[name]
    found = np.asarray(decode(data, WHITE)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= LOSSY / 3
    assert np.median(np.abs(found - expected).max(axis=2)) <= LOSSY
    path = tmp_path / "wrong.ending.png"
    path.write_bytes(data)
    (answer,) = between(classifier, path)
    assert answer.prediction is not None
    assert answer.prediction.label == classifier(expected).label


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_reason(name: str, classifier: Classifier, tmp_path: Path) -> None:
    data, reasons = REFUSED[name]
    path = tmp_path / "x.png"
    path.write_bytes(data)
    (answer,) = between(classifier, path)
    assert refused(answer) in reasons


def test_every_kind_of_path(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = ["a\nb.png", os.fsdecode(b"\xff\xfe.png"), "-x.png", "ü ♥.png", "x.jpg"]
    for name in odd:
        Path(name).write_bytes(PNG)
    os.mkfifo("fifo.png")
    Path("loop.png").symlink_to("loop.png")
    Path("nowhere.png").symlink_to("no such target")
    Path("folder.png").mkdir()
    with open("large.png", "wb") as stream:
        stream.truncate(1 << 40)  # of holes: only its size is looked at
    bad = {
        "fifo.png": "not-a-file",
        "/dev/zero": "not-a-file",
        "/dev/null": "not-a-file",
        "loop.png": "not-found",
        "nowhere.png": "not-found",
        "none.png": "not-found",
        "with\0zero.png": "not-found",
        "x.jpg/below.png": "not-found",
        "folder.png": "not-a-file",
        "large.png": "too-large",
        "n" * 5000: "unreadable",
    }
    answers = between(classifier, *odd, *bad)
    assert all(a.prediction is not None for a in answers[: len(odd)])
    assert {a.image: refused(a) for a in answers[len(odd) :]} == bad


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    path.chmod(0)
    assert refused(between(classifier, path)[0]) == "unreadable"


def test_names_of_any_bytes_are_printed(tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"\xff.png")
    name.write_bytes(PNG)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    for option in ([], ["--json"]):
        command = [sys.executable, "-m", "qdeploy", "predict", "--model", "qdeploy/shipped", *option, "--", str(name)]
        done = subprocess.run(command, capture_output=True, cwd=EXAMPLES.parent, env=environment)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1


def test_ghostscript_never_starts(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # forgets an earlier search
    path = tmp_path / "x.png"
    path.write_bytes(REFUSED["EPS"][0])
    with Image.open(path) as image, suppress(OSError):  # unrestricted, Pillow starts it
        image.load()
    assert (tmp_path / "started").exists()
    (tmp_path / "started").unlink()
    between(classifier, path)
    assert not (tmp_path / "started").exists()


def test_mutations_give_an_image_or_a_reason(classifier: Classifier, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(quarters())
    kinds = ("WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
    lzw = encoded(image, "TIFF", compression="tiff_lzw")
    sound = [PNG, JPEG, READABLE["EXIF 6"][0], lzw, *(encoded(image, kind) for kind in kinds)]
    paths = []
    for i in range(400):
        data = bytearray(sound[i % len(sound)])
        for at in rng.integers(0, len(data), int(rng.integers(1, 6))):
            data[at] = int(rng.integers(256))
        if i % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        if i % 7 == 0:
            data[int(rng.integers(len(data) + 1)) :] = sound[(i + 1) % len(sound)][int(rng.integers(100)) :]
        paths.append(tmp_path / str(i))
        paths[-1].write_bytes(data)
    answers = between(classifier, *paths)
    reasons = [refused(a) for a in answers if a.prediction is None]
    assert 100 < len(reasons) < 400
    assert {"damaged", "truncated"} <= set(reasons)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="range is unknown") as caught:
        Preprocessing()(Image.new(mode, (8, 8)))
    assert caught.value.reason == "unsupported-mode"


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_of_either_byte_order_keep_their_upper_half(mode: str) -> None:
    image = Image.frombytes(mode, (2, 1), np.array([0x80FF, 0x0180], ">u2" if mode == "I;16B" else "<u2").tobytes())
    assert np.asarray(Preprocessing().open(image))[0, :, 0].tolist() == [0x80, 0x01]


def test_a_pil_image_is_refused_like_a_file(tmp_path: Path) -> None:
    for image, reason in ((Image.new("RGB", (0, 5)), "empty"), (Image.new("La", (8, 8)), "unsupported-mode")):
        with pytest.raises(ImageError) as caught:
            Preprocessing()(image)
        assert caught.value.reason == reason
    (tmp_path / "x.png").write_bytes(PNG[:-40])
    with Image.open(tmp_path / "x.png") as lazy, pytest.raises(ImageError):
        Preprocessing()(lazy)
