"""The C kit: built with the compiler and library of this machine, run, and compared with the Python runtime."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

import qdeploy
from qdeploy.export import write_kits
from qdeploy.export.kits.c import c_string
from qdeploy.export.report.record import ExportReport
from tests.ort_header import runtime_folder

pytestmark = pytest.mark.xdist_group("C kit")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_folder(tmp_path_factory.mktemp("onnxruntime"))


@pytest.fixture(scope="module")
def kit(exported: ExportReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kits(Path(exported.out), ["c"], tmp_path_factory.mktemp("kit"))["c"]


@pytest.fixture(scope="module")
def built(kit: Path, runtime: Path) -> Path:
    """The kit, compiled without a warning."""
    copy = kit.with_name("built")
    shutil.copytree(kit, copy)
    flags = "-O1 -Werror -fsanitize=undefined -fno-sanitize-recover"
    made = subprocess.run(["make", f"ORT_HOME={runtime}", f"CFLAGS={flags}"], cwd=copy, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return copy


def classify(built: Path, *words: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(["./classify", *words], cwd=built, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.int8.onnx"])
def test_c_gives_the_answers_of_python(built: Path, name: str, tmp_path: Path) -> None:
    code, out, _ = classify(built, "--selftest", name, Path(name).with_suffix(".goldens"))
    assert code == 0, out
    classifier = qdeploy.load(built / name)
    pixels = classifier.card.goldens.images[0]
    (expected,) = classifier.classify(pixels[None])
    raw = tmp_path / "pixels.rgb"
    raw.write_bytes(pixels.tobytes())
    for image in ("example.ppm", raw):
        code, out, _ = classify(built, name, image, "2")
        lines = dict(line.split(": ", 1) for line in out.splitlines())
        assert code == 0
        assert lines["label"] == expected.label
        assert float(lines["probability"]) == pytest.approx(expected.probability, abs=1e-4)
        assert "median of 100 more" in out


def test_c_refuses_what_is_damaged(built: Path, tmp_path: Path) -> None:
    def broken(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    model, image, goldens = ((built / n).read_bytes() for n in ("model.int8.onnx", "example.ppm", "model.int8.goldens"))
    good = "model.int8.onnx"
    bad_inputs: list[tuple[str | Path, str | Path]] = [
        (broken("cut.onnx", model[:-5000]), "example.ppm"),
        (good, broken("cut.ppm", image[:-1])),
        (good, broken("large.ppm", image.replace(b"64 64", b"65 64", 1))),
        (good, broken("head.ppm", b"P6 #")),
        (good, broken("empty.ppm", b"")),
        (good, "missing.ppm"),
    ]
    for words in bad_inputs:
        code, out, err = classify(built, *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1), words
    assert classify(built, "--selftest", good, broken("cut.goldens", goldens[:-1]))[0] == 2
    code, out, _ = classify(built, "--selftest", good, broken("other.goldens", goldens[:-40] + bytes(40)))
    assert code == 1
    assert "FAILED" in out


def test_the_sums_are_those_of_sha256sum(kit: Path) -> None:
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum")
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=kit).returncode == 0


@pytest.mark.parametrize("label", ['a "b" \\ c', "naïve 猫", "??/ ??=", "two\nlines", "\x019", "%s"])
def test_labels_survive_c(label: str) -> None:
    literal = c_string(label)
    assert ast.literal_eval(f"b{literal}").decode() == label
    assert "??" not in literal
    assert literal.isascii()
