"""Choices of float layers that the user makes, and what the card says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from qdeploy.cli.main import run
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import InputError
from qdeploy.export import ExportConfig, ExportReport, export
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.pinned import pinned
from qdeploy.export.int8.units import quantizable, units_of
from qdeploy.training import TrainResult
from tests.conftest import SHORT

X86 = encoding_for("x86")
QUICK = ExportConfig(int8=True, search=SHORT, calibration="minmax", allow_drop=True, allow_slower=True)


@pytest.fixture(scope="module")
def fp32(fp32_file: Path) -> onnx.ModelProto:
    return onnx.load(str(fp32_file))


@pytest.fixture(scope="module")
def stem(fp32: onnx.ModelProto) -> frozenset[str]:
    return next(u.nodes for u in units_of(fp32, X86) if u.name == "stem")


def chosen(fp32: onnx.ModelProto, *names: str) -> frozenset[str]:
    found = pinned(ExportConfig(float_layers=names), fp32, X86)
    assert found is not None
    return found.nodes


def test_parts_modules_layers_and_roles_have_names(fp32: onnx.ModelProto, stem: frozenset[str]) -> None:
    assert chosen(fp32, "stem") == stem
    assert chosen(fp32, "none") == frozenset()
    some = min(n for n in stem if "Conv" in n)
    assert chosen(fp32, some) == {some}
    excite = chosen(fp32, "*.excite")
    assert excite
    assert all(".excite" in name for name in excite)
    inner = chosen(fp32, "stages.0.0")  # deeper than the parts that the search tries
    assert inner
    assert all(name.startswith("stages.0.0") for name in inner)
    assert chosen(fp32, "stem", "*.excite") == stem | excite
    every = quantizable(fp32, X86)
    assert chosen(fp32, "stem", "stages", "fusion", "head") <= every


def test_without_a_choice_there_is_a_search(fp32: onnx.ModelProto) -> None:
    assert pinned(ExportConfig(), fp32, X86) is None


def test_an_unknown_name_is_told_with_the_nearest(fp32: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match=r"no part 'stemm' \(did you mean 'stem' or .*; its parts are stem, "):
        chosen(fp32, "stemm")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"float_layers": ()}, "`float_layers` names nothing"),
        ({"float_layers": ("stem",), "like": Path("x")}, "give one of them"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ExportConfig(**fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def first(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    out = tmp_path_factory.mktemp("pinned") / "first"
    return export(Path(trained.run), replace(QUICK, float_layers=("stem",)), out)


def test_a_pinned_choice_is_exported_and_recorded(
    first: ExportReport, stem: frozenset[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(first.out) / "model.int8.onnx"
    card = read_artifact(file).card
    assert set(card.float_layers) == stem
    assert card.lineage["float_choice"] == {"by": "user", "layers": ["stem"]}
    assert first.int8[0].float_units == ("stem",)
    assert len(first.int8[0].choices) == 1  # nothing was searched
    assert run(["inspect", str(file)]) == 0
    assert "stem, chosen by --float-layers" in capsys.readouterr().out
    assert "What INT8 does to each part" not in (Path(first.out) / "report.html").read_text()


def test_a_file_s_choice_is_repeated(
    first: ExportReport, trained: TrainResult, tmp_path: Path, fp32_file: Path
) -> None:
    like = Path(first.out) / "model.int8.onnx"
    again = export(Path(trained.run), replace(QUICK, like=like), tmp_path / "again")
    other = read_artifact(tmp_path / "again" / "model.int8.onnx")
    expected = {"by": "file", "layers": ["stem"], "like_sha256": read_artifact(like).sha256}
    assert other.card.lineage["float_choice"] == expected
    graphs = [onnx.load(str(f)).graph for f in (like, other.path)]
    assert graphs[0].SerializeToString(deterministic=True) == graphs[1].SerializeToString(deterministic=True)
    assert again.artifacts[1].size_bytes == pytest.approx(first.artifacts[1].size_bytes, abs=200)
    with pytest.raises(InputError, match=r"`like` takes an INT8 file, and .*model.fp32.onnx is fp32"):
        export(Path(trained.run), replace(QUICK, like=fp32_file), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_file_that_was_searched_for_is_repeated_with_its_names(exported: ExportReport, int8_file: Path) -> None:
    card = read_artifact(int8_file).card
    assert card.lineage["float_choice"] == {"by": "search", "layers": list(exported.int8[0].float_units)}
    graph = onnx.load(exported.artifacts[0].path)
    found = pinned(ExportConfig(like=int8_file), graph, X86)
    assert found is not None
    assert set(card.float_layers) == found.nodes
    assert found.names == exported.int8[0].float_units


def test_a_file_of_another_model_is_refused(first: ExportReport, fp32: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(fp32)
    for node in other.graph.node:
        node.name = f"another.{node.name}"
    with pytest.raises(InputError, match="is of another model: it leaves 'stem"):
        pinned(ExportConfig(like=Path(first.out) / "model.int8.onnx"), other, X86)
