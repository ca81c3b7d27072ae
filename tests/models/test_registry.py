"""Counts against the published table (docs/models.md), not against the code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdeploy.core.errors import InputError
from qdeploy.models.heads import SotaHead
from qdeploy.models.layers import DropPath
from qdeploy.models.qonstraint import QonstraintConfig
from qdeploy.models.registry import MODELS, QONSTRAINTS, create_model, model_config, require_as_large, summarise

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
    "pico": (0.190, 2.6),
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


def test_the_model_for_microcontrollers_is_small_and_has_no_gelu() -> None:
    with torch.device("meta"):
        model = create_model("pico", 200)
    assert sum(p.numel() for p in model.parameters()) <= 200_000
    assert not any(isinstance(m, (nn.GELU, nn.LayerNorm)) for m in model.modules())
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 15


@pytest.mark.parametrize(
    ("name", "norms", "other"),
    [
        ("qonstraint-5.5", (nn.BatchNorm2d, nn.BatchNorm1d), nn.LayerNorm),
        ("qonstraint-5.6", (nn.BatchNorm2d, nn.BatchNorm1d), nn.LayerNorm),
        ("qonstraint-5.9-sota", (nn.LayerNorm,), (nn.BatchNorm2d, nn.BatchNorm1d)),
    ],
)
def test_versions_have_one_norm_in_backbone_and_head(
    name: str, norms: tuple[type[nn.Module], ...], other: type[nn.Module] | tuple[type[nn.Module], ...]
) -> None:
    with torch.device("meta"):
        model = create_model(name, 200)
    parts = [m for part in ("backbone", "head") for m in model.get_submodule(part).modules()]
    assert sum(isinstance(m, norms) for m in parts) == 2 * 8 + 5
    assert not any(isinstance(m, other) for m in parts)


def test_a_head_of_an_older_record_is_built_as_it_was() -> None:
    fields = QONSTRAINTS["qonstraint-5.9-sota"].to_dict()
    older = {k: v for k, v in fields.items() if k not in ("head_norm", "head_drop_path", "clamps", "stage_kernel")}
    with torch.device("meta"):
        head = QonstraintConfig.from_dict(older).build().head
    assert isinstance(head, SotaHead)
    assert isinstance(head.mixer.norm, nn.BatchNorm1d)
    assert [type(m) for m in (head.swiglu.norm, head.reducer.norm, head.attention.norm)] == [nn.LayerNorm] * 3
    assert not head.clamp_stages
    assert {m.base_rate for m in head.modules() if isinstance(m, DropPath)} == {0.0}


def block(c: int) -> int:
    """Parameters of a QonvViT block: 3x3, 1x1, two of the MLP, the gate, two norms, two scales."""
    gate = max(8, c // 16)
    return 9 * c * c + c + c * c + c + 2 * (4 * c * c) + 4 * c + c + (c + 1) * gate + gate + 1 + 4 * c + 2


def test_the_wide_reading_and_the_other_that_fits_have_their_counts() -> None:
    low, wide, other = (summarise(f"qonstraint-5.9-gap{n}").params for n in ("", "-356", "-134"))
    assert wide == low + block(256) + 3 * block(512) + 2 * block(1024) == 149_906_962
    smaller_kernels = 5 * (128 * 256 + 256 * 512 + 512 * 1024)
    assert other == low - block(256) + block(512) - smaller_kernels == 96_709_184
    assert other / 96.5e6 == pytest.approx(1.0022, abs=5e-5)


def test_fields_of_a_model_can_be_changed_by_name() -> None:
    config = model_config("nano", 10, changes=(("depths", "1,2,3"), ("drop_path", "0.2"), ("excite_gain", "1")))
    assert config.to_dict()["depths"] == [1, 2, 3]
    assert (config.to_dict()["drop_path"], config.to_dict()["excite_gain"]) == (0.2, 1.0)
    assert summarise("nano", 10, changes=(("depths", "1,1,3"),)).params == 828_542 + summarise_block()
    assert model_config("mobilevit-grouped-mha-v1", changes=(("conv", "pointwise"),)).to_dict()["conv"] == "pointwise"


def summarise_block() -> int:
    with_block, without = (summarise("nano", 10, changes=(("depths", f"1,1,{n}"),)).params for n in (5, 4))
    return with_block - without


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("depth", "1,2,3", "model nano has no field 'depth' .did you mean 'depths'"),
        ("num_classes", "3", "no field 'num_classes'"),
        ("depths", "1,2", "depths must be 3 numbers of 1 or more"),
        ("depths", "1,x,2", "model.depths must be whole numbers with commas between, found '1,x,2'"),
        ("drop_path", "much", "model.drop_path must be a number"),
        ("drop_path", "0.95", "drop_path must be between 0 and 0.9"),
        ("recentre", "batch", "recentre must be one of sample, running"),
        ("fusion_dim", "70", "fusion_dim must be a multiple of 4"),
        ("stage_kernel", "4", "stage_kernel must be one of 2, 3"),
    ],
)
def test_wrong_fields_of_a_model_are_refused_in_one_line(field: str, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model_config("nano", 10, changes=((field, text),))


def test_parameters_counted_without_allocation_are_the_real_ones() -> None:
    model = create_model("nano", 10)
    assert sum(p.numel() for p in model.parameters()) == summarise("nano", 10).params == 828_542


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'micro'"):
        model_config("micr", 10)


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(InputError, match="num_classes=0"):
        model_config("nano", 0)
    assert len(QONSTRAINTS) == 21
    assert len(MODELS) == 61


def test_a_record_of_a_larger_model_than_its_weights_is_refused_before_it_is_built() -> None:
    """``dims`` of 8000 in a ``run.json`` took 11 GB; on the meta device they take nothing."""
    config = MODELS["nano-ar"].to_dict()
    params = summarise("nano-ar").params
    require_as_large("qonstraint", config, 4 * params)
    with pytest.raises(InputError, match=r"described with [\d,]{13,} parameters, and its weights have 3,"):
        require_as_large("qonstraint", {**config, "dims": [8000, 8000, 8000, 8000]}, 4 * params)
    with pytest.raises(InputError, match="has the number 1e\\+09"):
        require_as_large("qonstraint", {**config, "depths": [10**9, 1, 1]}, 4 * params)
    with pytest.raises(InputError, match="parameters, and its weights"):
        require_as_large("qonstraint", config, params)
