"""The stress set: what it holds, what it finds, and that no option keeps an INT8 file whose answer is no number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.budget import AccuracyBudget
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export import ExportConfig, export_module
from qdeploy.export.graph.parity import run_session
from qdeploy.export.report.page import html_report
from qdeploy.export.stress import Stress, StressSet, centred_db, stress_images
from qdeploy.export.verdict import Loss, Outcome, Policy, Reason, decide, in_words
from qdeploy.runtime.session import open_session
from tests.conftest import SHORT
from tests.export.test_other_models import few
from tests.resealed import behind_logits
from tests.unsound import unsound

MODEL = SHIPPED / "model.int8.onnx"
EVERYTHING = Policy(allow_drop=True, allow_slower=True)
FINE = Loss(difference=PairedDifference(points=0.0, margin95=0.1, n=1000), flips=None)


@pytest.fixture(scope="module")
def images(own_cache: Path) -> NDArray[np.uint8]:
    return load_dataset(preprocessing=read_artifact(MODEL).card.preprocessing).splits["val"].pixels[:40]


def turned(source: Path, target: Path) -> Path:
    """Write a copy of a model file whose logits have the other sign for images darker than 1."""
    nodes = [
        helper.make_node("Cast", ["image"], ["t_pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["t_pixels"], ["t_rows"]),
        helper.make_node("ReduceMean", ["t_rows", "t_axis"], ["t_mean"]),
        helper.make_node("Less", ["t_mean", "t_one"], ["t_dark"]),
        helper.make_node("Neg", ["raw_logits"], ["t_minus"]),
        helper.make_node("Where", ["t_dark", "t_minus", "raw_logits"], ["logits"]),
    ]
    return behind_logits(source, target, nodes, {"t_axis": np.array([1]), "t_one": np.array(1, np.float32)})


def found(other: Path, images: NDArray[np.uint8]) -> Stress:
    with (
        open_session(read_artifact(MODEL)) as fp32,
        open_session(read_artifact(other), selftest=False) as int8,
    ):
        return StressSet.of(fp32, images).judge(int8, run_session(fp32, images), run_session(int8, images))


def test_the_set_has_the_extremes_and_is_the_same_every_time(images: NDArray[np.uint8]) -> None:
    made = stress_images(images)
    assert 15 <= len(made) <= 25
    assert all(p.shape == images.shape[1:] and p.dtype == np.uint8 for p in made.values())
    assert not made["black"].any()
    assert (made["white"] == 255).all()
    assert sorted(np.unique(made["half black, half white"], return_counts=True)[1]) == [made["black"].size // 2] * 2
    assert (made["a single white pixel"] == 255).sum() == 3
    assert (made["colour 255, 0, 0"] == (255, 0, 0)).all()
    spread = [p.astype(float).std() for p in images]
    assert made["validation image of lowest contrast"].std() == pytest.approx(min(spread))
    assert made["validation image of highest contrast"].std() == pytest.approx(max(spread))
    assert np.array_equal(made["validation image 2, inverted"], 255 - images[2])
    again = stress_images(images)
    assert all(np.array_equal(again[name], made[name]) for name in made)
    assert len(stress_images(images[:1])) > 10


def test_the_same_file_is_exact_everywhere(images: NDArray[np.uint8]) -> None:
    same = found(MODEL, images)
    assert same.val_sqnr_db is None
    assert all(r.sqnr_db is None and r.same_top1 and r.finite and not r.broken for r in same.rows)


def test_an_answer_that_is_no_number_is_never_kept(images: NDArray[np.uint8], tmp_path: Path) -> None:
    bad = found(unsound(MODEL, tmp_path / "nan.onnx"), images)
    assert bad.not_finite == ("black",)
    verdict = decide(FINE, None, AccuracyBudget(points=1.0), EVERYTHING, bad)
    assert verdict.outcome is Outcome.REJECTED
    assert verdict.reasons == (Reason.NOT_FINITE,)
    words = in_words(verdict, "INT8", "model.fp32.onnx", FINE.difference, EVERYTHING)
    assert words == "INT8 REJECTED: its answer is not finite for the image 'black'; kept model.fp32.onnx"
    with open_session(read_artifact(tmp_path / "nan.onnx"), selftest=False) as session:
        assert StressSet.of(session, images).not_finite == ("black",)


def test_a_sure_answer_that_becomes_another_is_rejected_unless_allowed(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    other = found(turned(MODEL, tmp_path / "turned.onnx"), images)
    row = next(r for r in other.rows if r.name == "black")
    assert row.sqnr_db is not None
    assert row.sqnr_db == pytest.approx(-10 * np.log10(4), abs=1e-3)  # the error is twice the signal
    assert not row.same_top1
    sure = replace(row, broken=True)
    assert (other.broken == ("black",)) == ((row.confidence or 0) >= 0.9)
    judged = replace(other, rows=(sure,))
    verdict = decide(FINE, None, AccuracyBudget(points=1.0), Policy(), judged)
    assert verdict.outcome is Outcome.REJECTED
    assert "for the image 'black'" in in_words(verdict, "INT8", "model.fp32.onnx", FINE.difference, Policy())
    assert decide(FINE, None, AccuracyBudget(points=1.0), EVERYTHING, judged).keep


def test_a_constant_added_to_all_logits_is_signal_of_no_class() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    noisy = logits + np.random.default_rng(1).normal(0, 0.1, (3, 5)).astype(np.float32)
    assert np.allclose(centred_db(logits, noisy), centred_db(logits + 1000, noisy + 1000), atol=0.1)
    assert np.isposinf(centred_db(logits, logits)).all()
    assert np.isnan(centred_db(logits, logits * np.float32(np.nan))).all()


class TellsByBrightness(nn.Module):
    """A classifier of dark images with few bright pixels: what its end computes is small, but for a white image."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 4, 1, bias=False)
        self.look = nn.Conv2d(4, 4, 1, bias=False)
        first, second = nn.Linear(4, 1, bias=False), nn.Linear(1, 2)
        self.end = nn.Sequential(first, second)
        with torch.no_grad():
            self.see.weight.fill_(1 / 3)
            self.look.weight.fill_(1 / 4)
            first.weight.fill_(1 / 4)
            second.weight.copy_(torch.tensor([[40.0], [-40.0]]))
            second.bias.copy_(torch.tensor([-16.0, 16.0]))

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.relu(self.look(torch.relu(self.see(x))))
        told: Tensor = self.end(seen.mean((2, 3)))
        return told


def dark_images() -> Dataset:
    """Give images of which few pixels are bright."""
    rules = Preprocessing(size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    rng = np.random.default_rng(0)
    splits = {}
    for name in ("train", "val", "test"):
        bright = rng.random((60, 16, 16, 1)) < rng.uniform(0.05, 0.2, (60, 1, 1, 1))
        pixels = np.where(bright, 255, rng.integers(0, 30, (60, 16, 16, 3))).astype(np.uint8)
        hashes = tuple(f"{name}{i}" for i in range(60))
        splits[name] = Split(pixels=pixels, labels=np.arange(60) % 2, hashes=hashes)
    whole = few()
    return replace(whole, classes=("bright", "dark"), splits=splits, preprocessing=rules)


def test_the_search_leaves_in_float_what_the_stress_set_needs(own_cache: Path, tmp_path: Path) -> None:
    data, lines = dark_images(), list[str]()
    config = ExportConfig(int8=True, target="portable", search=SHORT, calibration="minmax", max_drop=100.0)

    def made(out: str, **changes: Any) -> Any:
        report = export_module(
            TellsByBrightness(),
            data.classes,
            data.preprocessing,
            data,
            tmp_path / out,
            config=replace(config, **changes),
            note=lines.append,
        )
        return report.int8[0]

    pinned = made("pinned", float_layers=("none",))
    assert "white" in pinned.stress.broken  # the loss is in no image of the validation split
    assert pinned.stress.val_sqnr_db > 25
    found = made("found")
    assert found.float_units == ("model.end",)
    assert found.stress.broken == ()
    assert "float search: left 1 more parts in float for the stress set" in lines


def test_an_answer_where_fp32_gives_none_is_no_regard_for_it(images: NDArray[np.uint8], tmp_path: Path) -> None:
    with (
        open_session(read_artifact(unsound(MODEL, tmp_path / "nan.onnx")), selftest=False) as fp32,
        open_session(read_artifact(MODEL)) as int8,
    ):
        found = StressSet.of(fp32, images).judge(int8, run_session(int8, images), run_session(int8, images))
    assert (found.broken, found.not_finite, found.mendable) == (("black",), (), False)


class DividesByBrightness(nn.Module):
    """A classifier whose own floats are divided by 0 for a black image."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 10))
        self.register_buffer("mean", torch.tensor(Preprocessing().mean)[:, None, None])
        self.register_buffer("std", torch.tensor(Preprocessing().std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        light = torch.relu(x * self.std + self.mean - 1e-3).mean((1, 2, 3))[:, None]
        result: Tensor = self.layers(x) / light
        return result


def test_an_export_names_the_image_and_keeps_fp32_alone(own_cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, lines = few(), list[str]()
    config = ExportConfig(int8=True, allow_drop=True, allow_slower=True, search=SHORT, calibration="minmax")
    report = export_module(
        DividesByBrightness().eval(),
        data.classes,
        Preprocessing(),
        data,
        tmp_path / "out",
        config=config,
        note=lines.append,
    )
    assert not report.accepted
    assert "its answer is not finite for the image 'black'" in report.verdict
    assert any("the float model itself gives no number for black" in line for line in lines)
    assert [Path(a.path).name for a in report.artifacts] == ["model.fp32.onnx"]
    assert not (tmp_path / "out" / "model.int8.onnx").exists()
    text = (tmp_path / "out" / "report.json").read_text()
    assert "NaN" not in text
    rows = json.loads(text)["int8"][0]["stress"]["rows"]
    assert {r["name"]: r["finite"] for r in rows}["black"] is False
    assert "black <b>(rejected)</b>" in html_report(json.loads(text))
