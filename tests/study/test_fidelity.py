"""The numbers of docs/fidelity.md against the code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import nn

from qdeploy.data import cifar
from qdeploy.data.tiny_imagenet import HOLDOUT
from qdeploy.models.heads import SotaHead
from qdeploy.models.layers import CLAMP, DropPath, TokenExcite
from qdeploy.models.mobilevit import HEAD_WIDTH, PATCH, TRANSFORMERS, WIDTHS, Layer, MobileVitConfig
from qdeploy.models.operators import CONVOLUTIONS, HEADS, MHA_INNER
from qdeploy.models.qonstraint import FusionBlockV2, QonvViTBlock, Stem, build_stem
from qdeploy.models.registry import QONSTRAINTS, model_config
from qdeploy.study import SweepConfig
from qdeploy.training import config_from_recipe
from qdeploy.training.augment import REGIMES
from qdeploy.training.dynamics import initial_state, step
from qdeploy.training.learner import EVAL_BATCH
from qdeploy.training.loss import hardness_weights
from qdeploy.training.mixing import CUTMIX_ALPHA, MIXUP_ALPHA, PROBABILITY
from qdeploy.training.normalisation import NORMALISATIONS
from qdeploy.training.run import LAST_EPOCHS
from qdeploy.training.schedule import PAPER_MOMENTUM, ConfidenceSchedule, constants_of
from tests.models.test_mobilevit import PUBLISHED

Part = TypeVar("Part", bound=nn.Module)
ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "fidelity.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    part = DOCUMENT.partition(f"\n{heading}\n")[2]
    lines = re.findall(r"^\|(.*)\|$", part.partition("\n## ")[0], flags=re.M)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]]


def params(name: str, classes: int | None = None, size: int = 0) -> int:
    """Count without memory and without a forward pass."""
    with torch.device("meta"):
        return sum(p.numel() for p in model_config(name, classes, size).build().parameters())


def test_the_fourteen_variants_have_the_numbers_of_the_thesis_and_of_the_study() -> None:
    steps = json.loads((ROOT / "benchmarks" / "results" / "grid_sweep.json").read_text())["steps"]
    first = {s["model"]: s["result"] for s in steps if (s["kind"], s["rung"]) == ("train", 0)}
    rows = table("## The thesis' table 6.1")
    assert [(row[0].replace(", ", "-"), int(row[1].replace(",", ""))) for row in rows] == list(PUBLISHED.items())
    for row in rows:
        found = first[f"mobilevit-{row[0].replace(', ', '-')}"]
        assert found["images"]["val"] == 500
        assert row[2:] == [f"{found['val_top1']:.1f} %", f"{found['seconds'] / found['epochs']:.1f} s"]


RIVALS = table("## The paper's rivals")


def test_there_is_the_paper_s_model_and_fourteen_rivals() -> None:
    assert len({row[0] for row in RIVALS}) == 15


@pytest.mark.parametrize("row", RIVALS, ids=lambda row: row[0])
def test_a_rival_has_the_count_that_is_written(row: list[str]) -> None:
    name = row[6].strip("`")
    here = params(name, 200)
    assert f"{here:,}" == row[7]
    printed = float(row[2].removesuffix(" M"))
    if name == "torchvision/densenet121":  # its row leaves the classifier out
        counted = here - 200 * 1025
    elif name == "torchvision/mobilenet_v2":
        counted = params(name, 10)
    else:  # those of other libraries at ImageNet's classes, ours at their own
        counted = params(name, 1000, 224) if "/" in name else params(name)
    assert counted / 1e6 == pytest.approx(printed, rel=0.06)


def test_counts_at_ten_classes() -> None:
    counts = dict(re.findall(r"`([\w-]+)`\s([\d,]+\d)", DOCUMENT.partition("At the 10 classes")[2].partition("```")[0]))
    assert counts == {
        name: f"{params(name, 10):,}"
        for name in ("resnet-20", "densenet-bc-100-12", "pyramidnet-110", "wideresnet-28-10")
    }


def test_what_the_table_says_in_words() -> None:
    own = float(RIVALS[0][1].removesuffix(" %"))
    better = [row for row in RIVALS[1:] if float(row[1].removesuffix(" %")) > own]
    assert len(better) == 6
    small = [row for row in better if float(row[2].removesuffix(" M")) < 96.6 / 4]
    assert len(small) == 5


PAPER, THESIS = config_from_recipe("qonstraint-5.9"), config_from_recipe("mobilevit-thesis")
GAP, SOTA = QONSTRAINTS["qonstraint-5.9-gap"], QONSTRAINTS["qonstraint-5.9-sota"]
D = constants_of(PAPER)
DECISIONS = {row[0]: row[1:] for row in table("## What is said, what is done, and why")}


def strides(stem: Stem) -> list[float]:
    """Return the strides of a stem's three blocks."""
    blocks = build_stem(replace(GAP, stem=stem))
    return [max(m.stride[0] for m in block.modules() if isinstance(m, nn.Conv2d)) for block in blocks]


def built(name: str) -> nn.Module:
    with torch.device("meta"):
        return model_config(name, 200).build()


def parts(module: nn.Module, kind: type[Part]) -> list[Part]:
    return [m for m in module.modules() if isinstance(m, kind)]


def gate() -> list[float]:
    first = parts(built("qonstraint-5.9-gap"), TokenExcite)[-1]
    small = parts(built("nano"), TokenExcite)[0]
    return [first.gain, first.fc1.in_channels / first.fc1.out_channels, small.fc1.out_channels]


def head_numbers() -> list[float]:
    head = built("qonstraint-5.9-sota").get_submodule("head")
    assert isinstance(head, SotaHead)
    return [head.reducer.keep, head.pos.shape[1] - 1, head.attention.NUM_HEADS]


def path_weights() -> list[float]:
    """Return the weights of the paths at a confidence of 1 and, of the convolutional one, at nearly 0."""
    sure, unsure = torch.tensor([[80.0, 0.0]]), torch.zeros(1, 1000)
    one, nil = torch.ones(1, 2), torch.zeros(1, 2)
    transformer = SotaHead.combine(sure, nil, nil)[0, 0] / 80
    conv = SotaHead.combine(unsure, torch.ones(1, 1000), torch.zeros(1, 1000))[0, 0] / (1 - 1e-3)
    return [round(float(v), 4) for v in (transformer, conv, SotaHead.combine(nil, nil, one)[0, 0])]


def regime(name: str) -> list[float]:
    early, late = REGIMES[name]
    return [early.crop_scale, late.crop_scale, early.jitter, late.jitter, early.erase_probability,
            late.erase_probability]  # fmt: skip


def hardness() -> list[float]:
    """Return the weights of an image that is surely right and of one that is surely wrong, before the mean."""
    weights = hardness_weights(torch.tensor([[99.0, 0.0], [0.0, 99.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    scale = 1.5 / float(weights.mean())
    return [round(float(weights[0]) * scale, 4), 1, round(float(weights[1]) * scale, 4), 0]


def warm_up() -> list[float]:
    first = ConfidenceSchedule(PAPER, steps_per_epoch=10**6).settings(0).lr
    return [PAPER.warmup_epochs, round(first / PAPER.lr, 3)]


def rates() -> list[float]:
    model = built("qonstraint-5.9-sota")
    blocks = [m.base_rate for m in parts(model.get_submodule("backbone"), DropPath)]
    half = DropPath(0.1)
    half.set_confidence(0.0)
    return [blocks[0], blocks[-1], SOTA.head_drop_path, half.rate / 0.1, DropPath.MAX_RATE]


def grouped_convolutions() -> list[float]:
    first = CONVOLUTIONS["grouped"](16, 16, 3)
    return [parts(first, nn.Conv2d)[0].groups, parts(first, nn.Conv2d)[1].kernel_size[0], 1]


def inside(name: str) -> nn.Conv2d:
    """Return the convolution of a branch of the last block."""
    (conv,) = parts(parts(built("qonstraint-5.9-gap"), QonvViTBlock)[-1].get_submodule(name), nn.Conv2d)
    return conv


MIX, MLP = inside("mix"), inside("mlp")
EMA_LOW = step(D, initial_state(D), -1e9, 0)
HERE: dict[str, list[float]] = {
    "stem strides": [*strides("soft"), *strides("aggressive")],
    "widths": [*GAP.dims],
    "depths": [
        *GAP.depths, *QONSTRAINTS["qonstraint-5.9-gap-deep"].depths,
        *QONSTRAINTS["qonstraint-5.9-gap-356"].depths,
    ],
    "parameters": [
        params("qonstraint-5.9-gap"), *QONSTRAINTS["qonstraint-5.9-gap-356"].depths, params("qonstraint-5.9-gap-356"),
        *QONSTRAINTS["qonstraint-5.9-gap-134"].depths, QONSTRAINTS["qonstraint-5.9-gap-134"].stage_kernel,
        params("qonstraint-5.9-gap-134"),
    ],
    "token mixing": [*MIX.kernel_size, MIX.groups],
    "MLP": [MLP.out_channels / MLP.in_channels],
    "clamp": [CLAMP],
    "gate": gate(),
    "residual scale": [GAP.res_scale],
    "drop path": rates(),
    "dropout": [GAP.stem_dropout, GAP.fusion_dropout, SotaHead(16, 2, 4).swiglu.dropout.p],
    "fusion": [FusionBlockV2(8, 8, GAP.fusion_dim, 0.0, "gelu").num_heads, 1, 1],
    "SOTA head": head_numbers(),
    "fusion of the head's paths": path_weights(),
    "head confidence": [],
    "class token": [head_numbers()[0] + 1],
    "re-centring": [3],
    "run": [PAPER.epochs, PAPER.batch_size],
    "validation": [EVAL_BATCH],
    "rate": [PAPER.lr],
    "rate's maximum, minimum, period (log)": [D.lr_max, D.lr_min, D.period],
    "warm-up": warm_up(),
    "weight decay": [PAPER.weight_decay],
    "first beta": [PAPER_MOMENTUM, D.momentum0],
    "momentum": [D.momentum_gain, D.momentum_floor, D.momentum_cap_early, D.late_fraction, D.momentum_cap_late],
    "momentum on a plateau": [D.momentum_plateau_step, 0],
    "EMA decay": [EMA_LOW.ema - 0.02 * EMA_LOW.confidence, EMA_LOW.ema + 0.02 * (1 - EMA_LOW.confidence)],
    "reward's clamp (log)": [D.reward_clamp],
    "boost": [D.boost_confidence, D.boost_gain],
    "plateau reset": [D.patience, D.reset_fraction],
    "label smoothing": [D.smoothing_floor, D.smoothing_max, D.late_fraction, D.smoothing_floor],
    "auxiliary loss": [D.auxiliary_from, D.auxiliary_to],
    "hardness": hardness(),
    "gradient norm": [PAPER.clip_norm],
    "SWA": [D.swa_start],
    "reloads": [*D.reload_epochs],
    "MixUp, CutMix": [*PROBABILITY, MIXUP_ALPHA, CUTMIX_ALPHA],
    "RandAugment": [REGIMES["mid"][1].num_ops, REGIMES["mid"][1].magnitude],
    "crop, jitter, erasing of `low`": regime("low"),
    "of `mid`": regime("mid"),
    "of `high`": regime("high"),
    "erased area": [*REGIMES["high"][0].erase_scale, *REGIMES["mid"][1].erase_scale],
    "split": [HOLDOUT],
    "thesis: groups": grouped_convolutions(),
    "thesis: heads": [HEADS, MHA_INNER],
    "thesis: expansion": [*MobileVitConfig().expansions],
    "thesis: channels": [*WIDTHS, HEAD_WIDTH],
    "thesis: transformers": [n for part in zip(*TRANSFORMERS.values(), strict=True) for n in part],
    "thesis: feed-forward": [parts(Layer("mha", 16).feed_forward, nn.Linear)[0].out_features / 16],
    "thesis: context": [PATCH * PATCH],
    "thesis: recipe": [THESIS.lr, THESIS.min_lr, THESIS.weight_decay, THESIS.batch_size, THESIS.epochs, THESIS.seed,
                       round(THESIS.crop * THESIS.input_size), THESIS.input_size],
    "thesis: padding": [THESIS.pad],
    "thesis: constants": [v for part in NORMALISATIONS[THESIS.normalisation] for v in part],
    "thesis: training images": [cifar.HOLDOUT],
    "thesis: time of an epoch": [LAST_EPOCHS],
    "thesis: verdict": [SweepConfig().max_drop],
}  # fmt: skip
AS_WRITTEN = {
    "MLP": 1, "fusion of the head's paths": 4, "run": 2, "rate": 1, "gradient norm": 1, "thesis: recipe": 8, "clamp": 1,
    "thesis: padding": 1, "thesis: constants": 6, "thesis: time of an epoch": 1,
    "crop, jitter, erasing of `low`": 6,
}  # fmt: skip
"""Rows whose numbers in the text are those of the code, and how many the text has."""


def numbers(cell: str) -> list[float]:
    """Return the numbers of a cell, names in code left out."""
    plain = re.sub(r"`[^`]*`", "", cell)
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d(?:\.\d+)?|\d+(?:\.\d+)?(?:e-\d+)?", plain)]


def test_every_row_of_the_table_is_checked() -> None:
    assert list(DECISIONS) == list(HERE)


@pytest.mark.parametrize("what", HERE)
def test_every_number_here_is_the_code_s(what: str) -> None:
    text, here, _ = DECISIONS[what]
    assert numbers(here) == pytest.approx(HERE[what], rel=1e-9, abs=1e-12)
    if what in AS_WRITTEN:
        said = numbers(text)
        assert len(said) == AS_WRITTEN[what]
        if what == "fusion of the head's paths":
            said = [said[0], said[1], said[3]]  # without the 1 of (1 - conf)
        assert said == pytest.approx(HERE[what][: len(said)], rel=1e-6)
