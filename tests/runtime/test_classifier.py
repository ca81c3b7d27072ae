from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qdeploy
from qdeploy.core.errors import ArtifactError, ImageError, InputError
from qdeploy.export.report.record import ExportReport
from qdeploy.runtime.classifier import find_artifact

SHIRT = Path(__file__).parents[2] / "examples" / "shirt.png"


def test_every_kind_of_input_gives_the_same_answer(int8_file: Path) -> None:
    classifier = qdeploy.load(int8_file)
    expected = classifier(SHIRT)
    with Image.open(SHIRT) as image:
        inputs = [str(SHIRT), SHIRT.read_bytes(), image.convert("RGB"), np.asarray(image.convert("RGB"))]
    for answer in [*(classifier(i) for i in inputs), *classifier(inputs)]:
        assert answer.label == expected.label
        assert np.allclose(answer.probabilities, expected.probabilities, atol=1e-6)
    assert classifier([]) == []


def test_the_answer_is_ranked(int8_file: Path) -> None:
    answer = qdeploy.load(int8_file)(SHIRT)
    best = answer.top(3)
    assert best[0].label == answer.label
    assert best[0].probability == answer.probability == answer.probabilities.max()
    assert best[0].probability >= best[1].probability >= best[2].probability
    assert answer.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
    assert len(answer.top(99)) == 10


def test_a_bad_image_raises(int8_file: Path) -> None:
    with pytest.raises(ImageError):
        qdeploy.load(int8_file)(b"not an image")


def test_the_newest_export_s_recommended_file_is_taken(
    exported: ExportReport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = Path(exported.out)
    monkeypatch.chdir(out.parents[1])
    assert find_artifact() == Path("exports") / out.name / exported.recommended
    assert find_artifact(out) == out / exported.recommended
    monkeypatch.chdir(tmp_path)
    assert find_artifact().parent.name == "shipped"


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello, I am no model at all")
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        qdeploy.load(tmp_path / "text.onnx")
    with pytest.raises(ArtifactError, match="does not exist"):
        qdeploy.load(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match="is not an export"):
        qdeploy.load(tmp_path)


def test_importing_qdeploy_is_light() -> None:

    code = "import sys, qdeploy; print([m for m in ('torch', 'onnxruntime', 'numpy', 'typer') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_leaving_a_with_closes_it() -> None:
    with qdeploy.load() as classifier:
        assert classifier(SHIRT).label
    with pytest.raises(InputError, match="this session is closed"):
        classifier(SHIRT)
