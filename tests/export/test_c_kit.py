"""The C kit: built with the compiler and library of this machine, run, and compared with the Python runtime."""

from __future__ import annotations

import ast
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import qdeploy
from qdeploy.core.artifact import SHIPPED
from qdeploy.export import write_kits
from qdeploy.export.kits.c import c_string
from qdeploy.export.report.record import ExportReport
from tests.confident import confident
from tests.ort_header import runtime_folder
from tests.unsound import unsound

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


def test_c_says_unknown_below_the_threshold_of_each_card(runtime: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    shutil.copytree(SHIPPED, export)
    confident(SHIPPED / "model.int8.onnx", export / "model.int8.onnx", temperature=1.5, threshold=1e6)
    confident(SHIPPED / "model.fp32.onnx", export / "model.fp32.onnx", temperature=0.8, threshold=-1e6)
    kit = write_kits(export, ["c"], tmp_path)["c"]
    flags = "-O1 -Werror -fsanitize=undefined -fno-sanitize-recover"
    made = subprocess.run(["make", f"ORT_HOME={runtime}", f"CFLAGS={flags}"], cwd=kit, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    shutil.copy(kit / "model.int8.onnx", kit / "elsewhere.onnx")
    for name in ("model.int8.onnx", "model.fp32.onnx"):
        classifier = qdeploy.load(kit / name)
        (expected,) = classifier.classify(classifier.card.goldens.images[:1])
        code, out, _ = classify(kit, f"./{name}", "example.ppm")
        lines = dict(line.split(": ", 1) for line in out.splitlines())
        assert (code, lines["label"]) == (0, expected.label)
        assert ("would be" in lines) == expected.unknown == (name == "model.int8.onnx")
        assert lines.get("would be", expected.would_be) == expected.would_be
        assert float(lines["score"]) == pytest.approx(expected.score, abs=1e-2)
        assert float(lines["probability"]) == pytest.approx(expected.probability, abs=1e-3)
    assert "score" not in classify(kit, "elsewhere.onnx", "example.ppm")[1]  # no model of the kit


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


def test_c_ranks_no_answer_that_is_not_finite(built: Path, tmp_path: Path) -> None:
    model = unsound(built / "model.int8.onnx", tmp_path / "model.onnx")
    black, white = tmp_path / "black.rgb", tmp_path / "white.rgb"
    black.write_bytes(bytes(64 * 64 * 3))
    white.write_bytes(b"\xff" * 64 * 64 * 3)
    code, out, err = classify(built, model, black)
    assert (code, out) == (2, "")
    assert err == f"{black}: the model's answer to it is not finite; the model file is not sound\n"
    assert classify(built, model, white)[0] == 0


def test_the_sums_are_those_of_sha256sum(kit: Path) -> None:
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum")
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=kit).returncode == 0


def test_a_header_of_any_labels_compiles_and_gives_them_back(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    odd = ["??/", '"', "\\", "\n", "\r\t", "%s", "*/", "//", "\x01", "7", "a", "\u00e9", "\u732b", "\u202e", "\x1b[31m"]
    chosen = random.Random(0)
    labels = ["".join(chosen.choices(odd, k=6)) for _ in range(100)]
    lines = "".join(f"{c_string(label)},\n" for label in labels)
    (tmp_path / "main.c").write_text(
        "#include <stdio.h>\n#include <string.h>\n"
        f"static const char *const labels[] = {{\n{lines}}};\n"
        "int main(void)\n{\n    for (int i = 0; i < 100; ++i) {\n"
        "        fwrite(labels[i], 1, strlen(labels[i]) + 1, stdout);\n    }\n    return 0;\n}\n"
    )
    flags = ["-std=c99", "-trigraphs", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([compiler, *flags, "-o", tmp_path / "main", tmp_path / "main.c"], check=True)
    given = subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout
    assert given.decode().split("\0")[:-1] == labels


@pytest.mark.parametrize("label", ['a "b" \\ c', "naïve 猫", "??/ ??=", "two\nlines", "\x019", "%s"])
def test_labels_survive_c(label: str) -> None:
    literal = c_string(label)
    assert ast.literal_eval(f"b{literal}").decode() == label
    assert "??" not in literal
    assert literal.isascii()
