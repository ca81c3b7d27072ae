"""Counts against the published table (docs/models.md), not against the code."""

from __future__ import annotations

import pytest

from qdeploy.core.errors import InputError
from qdeploy.models.registry import MODELS, QONSTRAINTS, create_model, model_config, summarise

TABLE = {  # parameters in millions, MACs of convolutions and linear layers in millions
    "qonstraint-5.9-gap": (96.596, 2816),
    "qonstraint-5.9-sota": (99.762, 2930),
    "qonstraint-5.9-gap-deep": (120.288, 3422),
    "qonstraint-5.9-sota-deep": (123.454, 3536),
    "qonstraint-5.9-aggressive": (99.738, 733),
    "qonstraint-5.6": (99.762, 2930),
    "qonstraint-5.5": (25.047, 734),
    "qonstraint-5.9-lighter": (32.458, 1037),
    "qonstraint-5.9-heavier": (38.385, 1188),
    "qonstraint-5.9-heaviest": (149.520, 4748),
    "nano": (0.841, 26.4),
    "nano-a": (0.841, 6.5),
    "micro": (4.809, 139.2),
    "micro-a": (4.809, 34.7),
}


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_are_the_table_s(name: str) -> None:
    params, macs = TABLE[name]
    summary = summarise(name)
    assert round(summary.params / 1e6, 3) == params
    # the table leaves out the attention's products, which are at most 2.2 % of the smallest model
    assert macs * 0.995 <= summary.macs / 1e6 <= macs * 1.025


def test_the_reported_model_has_the_paper_s_size() -> None:
    assert summarise("qonstraint-5.9-gap").params / 1e6 == pytest.approx(96.5, rel=0.002)


@pytest.mark.parametrize("name", ["nano", "micro"])
def test_every_small_model_has_its_four_forms(name: str) -> None:
    config = QONSTRAINTS[name]
    assert (config.norm, config.recentre, config.act, config.stem) == ("foldable", "running", "gelu", "soft")
    assert QONSTRAINTS[f"{name}-r"].act == "relu"
    assert QONSTRAINTS[f"{name}-a"].stem == "aggressive"
    both = QONSTRAINTS[f"{name}-ar"]
    assert (both.act, both.stem) == ("relu", "aggressive")
    assert summarise(f"{name}-r").params == summarise(name).params == summarise(f"{name}-ar").params


def test_versions_differ_as_the_ablation_says() -> None:
    assert QONSTRAINTS["qonstraint-5.5"].norm == "batchnorm"
    assert QONSTRAINTS["qonstraint-5.6"].norm == "batchnorm"
    assert QONSTRAINTS["qonstraint-5.9-sota"].norm == "layernorm"


def test_parameters_counted_without_allocation_are_the_real_ones() -> None:
    model = create_model("nano", 10)
    assert sum(p.numel() for p in model.parameters()) == summarise("nano", 10).params == 828_542


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'micro'"):
        model_config("micr", 10)


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(InputError, match="num_classes=0"):
        model_config("nano", 0)
    assert len(QONSTRAINTS) == 18
    assert len(MODELS) == 54
