"""Images for which a graph's choice of its largest values is a matter of rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qdeploy.core.artifact import read_artifact
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.export import ExportConfig, export_module
from qdeploy.export.graph.ties import without_ties
from qdeploy.models.heads import SotaHead
from tests.export.test_other_models import few

PICKS = """
<ir_version: 9, opset_import: ["" : 18]>
net (uint8[N, 1, 4, 3] image) => (float[N, {k}] logits)
<int64[1] k = {{{k}}}, int64[2] axes = {{1, 3}}>
{{
    x = Cast <to = 1> (image)
    values = ReduceMean <keepdims = 0> (x, axes)
    logits, where = TopK <axis = 1, largest = {largest}> (values, k)
}}
"""
ROWS = np.array([[9, 7, 5, 1], [9, 5, 5, 1], [7, 7, 2, 1], [9, 9, 9, 9], [8, 3, 1, 1]], np.uint8)


@pytest.mark.parametrize(
    ("k", "largest", "decided"),
    [(1, 1, [0, 1, 4]), (2, 1, [0, 2, 4]), (2, 0, [0, 2, 4]), (1, 0, [0, 1, 2]), (4, 1, [0, 1, 2, 3, 4])],
)
def test_rows_whose_last_pick_equals_the_first_left_out_are_ties(k: int, largest: int, decided: list[int]) -> None:
    graph = onnx.parser.parse_model(PICKS.format(k=k, largest=largest))
    images = np.repeat(ROWS[:, None, :, None], 3, axis=3)
    assert np.array_equal(without_ties(graph, images), images[decided])


def test_whole_numbers_and_several_picks_of_an_image() -> None:
    """Each of the three columns of an image is a row to pick from, as the tokens of an image choose experts."""
    graph = onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 18]>
        net (uint8[N, 1, 4, 3] image) => (int32[M, 2] logits)
        <int64[1] k = {2}, int64[2] rows = {-1, 4}>
        {
            whole = Cast <to = 6> (image)
            turned = Transpose <perm = [0, 1, 3, 2]> (whole)
            values = Reshape (turned, rows)
            logits, where = TopK (values, k)
        }
        """
    )
    images = np.repeat(np.repeat(ROWS[:1, None, :, None], 3, axis=3), 3, axis=0)
    images[1, 0, :, 2] = ROWS[1]
    assert np.array_equal(without_ties(graph, images), images[[0, 2]])


def test_what_is_no_number_is_compared_and_what_is_no_image_s_pick_is_ignored() -> None:
    graph = onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 18]>
        net (uint8[N, 1, 4, 3] image) => (float[N, 2] logits)
        <int64[1] k = {2}, int64[2] axes = {1, 3}, float five = {5.0}, float[4] same = {7.0, 7.0, 7.0, 7.0}>
        {
            x = Cast <to = 1> (image)
            mean = ReduceMean <keepdims = 0> (x, axes)
            above = Sub (mean, five)
            values = Sqrt (above)
            logits, where = TopK (values, k)
            fixed = Identity (same)
            alike, there = TopK (fixed, k)
        }
        """
    )
    rows = np.array([[9, 8, 7, 6], [9, 7, 7, 6], [9, 8, 7, 1]], np.uint8)  # clear, a tie, the root of -4
    images = np.repeat(rows[:, None, :, None], 3, axis=3)
    assert np.array_equal(without_ties(graph, images), images[[0, 2]])


def test_a_graph_that_can_only_tie_keeps_all_images() -> None:
    images = np.full((3, 1, 4, 3), 7, np.uint8)
    assert len(without_ties(onnx.parser.parse_model(PICKS.format(k=2, largest=1)), images)) == 3


def test_an_image_with_a_tie_is_neither_compared_nor_a_golden(own_cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, rules = few(), Preprocessing()
    model = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), SotaHead(16, 10, num_tokens=64)).eval()
    images = data.splits["val"].pixels
    make_a_tie(model, images[1], rules)
    lines: list[str] = []
    report = export_module(model, data.classes, rules, data, tmp_path / "out", config=ExportConfig(), note=lines.append)
    assert "1 of 60 images are not compared: what the model picks is a tie there" in lines
    assert report.artifacts[0].parity.n == 59
    goldens = read_artifact(Path(report.artifacts[0].path)).card.goldens.images
    assert np.array_equal(goldens, images[[0, 2, 3, 4]])


def make_a_tie(model: nn.Sequential, image: NDArray[np.uint8], rules: Preprocessing) -> None:
    """Turn the scorer's weights until the 16th and the 17th token of an image have the same score."""
    head = model[1]
    assert isinstance(head, SotaHead)
    seen: list[Tensor] = []
    hook = head.reducer.norm.register_forward_hook(lambda module, given, tokens: seen.append(tokens[0]))
    pixels = (torch.from_numpy(image).float() / 255 - torch.tensor(rules.mean)) / torch.tensor(rules.std)
    with torch.inference_mode():
        model(pixels.permute(2, 0, 1)[None])
    hook.remove()
    tokens = seen[0].double()
    weights = head.reducer.score.weight[0].detach().double()
    last, first = (tokens @ weights).argsort(descending=True)[15:17]
    apart = tokens[last] - tokens[first]
    head.reducer.score.weight.data[0] = (weights - (weights @ apart) / (apart @ apart) * apart).float()
