"""The kit of C alone: built without a warning, run, and compared with the Python runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import qdeploy
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.card import Goldens
from qdeploy.core.errors import ArtifactError
from qdeploy.export import write_kits
from qdeploy.export.graph.seal import sealed_bytes
from qdeploy.export.kits.native import native_goldens, photos_of
from qdeploy.native.photos import ppm
from qdeploy.native.source import model_source
from tests.confident import confident
from tests.native.compiled import COMPILER

pytestmark = pytest.mark.skipif(not (COMPILER and shutil.which("make")), reason="no C compiler or make is installed")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kits(SHIPPED, ["native"], tmp_path_factory.mktemp("kit"))["native"]


@pytest.fixture(scope="module")
def built(kit: Path) -> Path:
    copy = kit.with_name("built")
    shutil.copytree(kit, copy)
    made = subprocess.run(["make", "CFLAGS=-O1 -Werror"], cwd=copy, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[:2000]
    return copy


def test_the_program_holds_no_symbols(built: Path) -> None:
    assert b".symtab" not in (built / "classify").read_bytes()


def test_the_file_for_microcontrollers_is_taken_where_there_is_one(tmp_path: Path) -> None:
    export = tmp_path / "export"
    shutil.copytree(SHIPPED, export)
    shipped = read_artifact(SHIPPED / "model.int8.onnx")
    other = sealed_bytes(onnx.load_from_string(shipped.data), replace(shipped.card, target="cortex-m"))
    (export / "model.int8.cortex-m.onnx").write_bytes(other)
    kit = write_kits(export, ["native"], tmp_path)["native"]
    assert json.loads((kit / "model.card.json").read_text())["target"] == "cortex-m"


def classify(built: Path, *words: str | Path, tier: str = "") -> tuple[int, str, str]:
    environment = {"QDEPLOY_TIER": tier} if tier else {}
    done = subprocess.run(["./classify", *words], cwd=built, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_it_gives_the_label_that_python_gives(built: Path, tmp_path: Path) -> None:
    classifier = qdeploy.load(SHIPPED / "model.int8.onnx")
    for i, pixels in enumerate(classifier.card.goldens.images):
        (tmp_path / f"{i}.rgb").write_bytes(pixels.tobytes())
        (expected,) = classifier.classify(pixels[None])
        code, out, _ = classify(built, tmp_path / f"{i}.rgb")
        lines = dict(line.split(": ", 1) for line in out.splitlines())
        assert (code, lines["label"]) == (0, expected.label)
        assert float(lines["probability"]) == pytest.approx(expected.probability, abs=0.02)
    assert classify(built, "example.ppm")[0] == 0


def test_it_says_unknown_below_the_threshold_of_the_card(tmp_path: Path) -> None:
    export = tmp_path / "export"
    shutil.copytree(SHIPPED, export)
    for threshold in (-1e6, 1e6):
        confident(SHIPPED / "model.int8.onnx", export / "model.int8.onnx", temperature=1.5, threshold=threshold)
        kit = write_kits(export, ["native"], tmp_path)["native"]
        made = subprocess.run(["make", "CFLAGS=-O1 -Werror"], cwd=kit, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr[:2000]
        classifier = qdeploy.load(export / "model.int8.onnx")
        (expected,) = classifier.classify(classifier.card.goldens.images[:1])
        (tmp_path / "0.rgb").write_bytes(classifier.card.goldens.images[0].tobytes())
        code, out, _ = classify(kit, tmp_path / "0.rgb")
        lines = dict(line.split(": ", 1) for line in out.splitlines())
        assert (code, lines["label"]) == (0, expected.label)
        assert lines.get("would be", expected.would_be) == expected.would_be
        assert ("would be" in lines) == expected.unknown == (threshold > 0)
        assert float(lines["score"]) == pytest.approx(expected.score, abs=0.1)
        assert float(lines["probability"]) == pytest.approx(expected.probability, abs=0.02)
        shutil.rmtree(kit)


@pytest.mark.parametrize("tier", ["", "c99"])
def test_its_self_test_asks_for_every_bit(built: Path, tmp_path: Path, tier: str) -> None:
    code, out, _ = classify(built, "--selftest", "model.goldens", tier=tier)
    assert (code, "0 of 40 answers differ" in out) == (0, True)
    assert f"with {tier}" in out
    goldens = bytearray((built / "model.goldens").read_bytes())
    goldens[-4] ^= 1  # the last bit of the last logit
    (tmp_path / "other.goldens").write_bytes(goldens)
    code, out, _ = classify(built, "--selftest", tmp_path / "other.goldens", tier=tier)
    assert (code, "1 of 40 answers differ" in out) == (1, True)


def test_bad_input_is_exit_code_2(built: Path, tmp_path: Path) -> None:
    (tmp_path / "long.ppm").write_bytes(b"P6\n16385 1\n255\n" + bytes(16385 * 3))
    (tmp_path / "short.ppm").write_bytes(b"P6\n65 64\n255\n" + bytes(65 * 64 * 3 - 1))
    goldens = (built / "model.goldens").read_bytes()
    (tmp_path / "cut.goldens").write_bytes(goldens[:-1])
    (tmp_path / "wide.goldens").write_bytes(goldens[:20] + b"\xff\xff\xff\x7f" + goldens[24:])
    wrong: list[list[str]] = [["--selftest", f"{tmp_path}/{name}.goldens"] for name in ("cut", "wide")]
    wrong += [[f"{tmp_path}/{name}.ppm"] for name in ("missing", "long", "short")]
    for words in (*wrong, ["--selftest", "example.ppm"], [], ["-x"]):
        code, out, err = classify(built, *words)
        assert (code, out) == (2, "")
        assert err


def test_it_resizes_a_photo_as_python_does(built: Path) -> None:
    classifier = qdeploy.load(SHIPPED / "model.int8.onnx")
    photos = photos_of(classifier.card.goldens.images)
    assert len({photo.shape for photo in photos}) == 4
    for photo in photos:
        (built / "photo.ppm").write_bytes(ppm(photo))
        code, out, _ = classify(built, "photo.ppm")
        expected = classifier(built / "photo.ppm")
        lines = dict(line.split(": ", 1) for line in out.splitlines())
        assert (code, lines["label"]) == (0, expected.label)
        assert float(lines["probability"]) == pytest.approx(expected.probability, abs=0.02)


def test_a_tier_that_is_not_there_is_bad_input(built: Path) -> None:
    assert classify(built, "example.ppm", tier="neon")[0] == 2


def test_its_readme_says_what_memory_it_needs(kit: Path) -> None:
    source = model_source(read_artifact(SHIPPED / "model.int8.onnx"))
    text = (kit / "README.md").read_text()
    assert f"| RAM: arena of one context | {source.arena_bytes} |" in text
    assert f"| flash: weights and tables | {source.constant_bytes} |" in text
    assert f"QDEPLOY_ARENA_BYTES {source.arena_bytes} " in (kit / "model_info.h").read_text()
    weights = json.loads((kit / "model.card.json").read_text())["model"]["params"]
    assert weights < source.constant_bytes < 1.1 * weights


def test_it_is_made_of_the_int8_file_whatever_is_recommended(tmp_path: Path) -> None:
    export = Path(shutil.copytree(SHIPPED, tmp_path / "export"))
    report = json.loads((export / "report.json").read_text())
    (export / "report.json").write_text(json.dumps({**report, "recommended": "model.fp32.onnx"}))
    made = write_kits(export, ["native"], tmp_path)["native"]
    int8 = read_artifact(SHIPPED / "model.int8.onnx")
    assert json.loads((made / "model.card.json").read_text())["sha256"] == int8.sha256
    assert f'QDEPLOY_MODEL_SHA256 "{int8.sha256}"' in (made / "model_info.h").read_text()


def test_stack_use_is_below_what_the_readme_says(kit: Path, tmp_path: Path) -> None:
    words = [str(COMPILER), "-std=c99", "-O3", "-fstack-usage", "-c", str(kit / "model.c"), "-o", "model.o"]
    subprocess.run(words, cwd=tmp_path, check=True)
    usage = [line.split("\t") for line in (tmp_path / "model.su").read_text().splitlines()]
    assert {kind for *_, kind in usage} <= {"static", "dynamic,bounded"}
    largest = sorted((int(size) for _, size, _ in usage), reverse=True)
    assert sum(largest[:2]) + 256 < 4096  # a run, small itself, calls a kernel, and that at most one tile


def test_fast_math_is_an_error(kit: Path) -> None:
    words = [str(COMPILER), "-std=c99", "-ffast-math", "-fsyntax-only", "model.c"]
    refused = subprocess.run(words, cwd=kit, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "-ffast-math changes the model's answers" in refused.stderr


def test_a_model_whose_c_would_answer_otherwise_gets_no_kit() -> None:
    artifact = read_artifact(SHIPPED / "model.int8.onnx")
    goldens = artifact.card.goldens
    wrong = Goldens.of(goldens.images, goldens.logits[::-1], goldens.min_sqnr_db)
    object.__setattr__(artifact.card, "goldens", wrong)
    with pytest.raises(ArtifactError, match="gives other answers when it is compiled"):
        native_goldens(artifact)
