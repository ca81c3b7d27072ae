from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core.errors import InputError
from qdeploy.core.only_with import ONLY_WITH
from qdeploy.data.catalog import READERS
from qdeploy.models.registry import MODELS
from qdeploy.training.recipes import RECIPES, TrainConfig, config_from_recipe, config_from_record, parse_settings


def test_the_reported_run_is_the_paper_s() -> None:
    config = config_from_recipe("qonstraint-5.9")
    assert (config.model, config.epochs, config.batch_size) == ("qonstraint-5.9-gap", 70, 256)
    assert (config.lr, config.weight_decay, config.clip_norm) == (5e-4, 5e-5, 1.0)
    assert (config.schedule, config.augmentation) == ("confidence", "mid")
    parts = ("boosts plateau_resets restarts dynamic_momentum dynamic_ema dynamic_smoothing dynamic_drop_path "
             "hardness swa reloads guard auxiliary randaugment mixup cutmix")  # fmt: skip
    assert all(getattr(config, part) is True for part in parts.split())
    assert config.confidence_from_label is False


def test_every_recipe_builds_and_names_a_model() -> None:
    for name in RECIPES:
        config = config_from_recipe(name)
        assert config.recipe == name
        assert config.model in MODELS
        assert config.data in READERS
    grid = [n for n in RECIPES if n.count("-") >= 3 and n.split("-")[2] in ("gap", "sota")]
    assert len(grid) == 12
    assert config_from_recipe("qonstraint-5.9-gap-low-deep").epochs == 60
    assert config_from_recipe("qonstraint-5.9-sota-high").augmentation == "high"
    assert config_from_recipe("qonstraint-5.9-aggressive").batch_size == 512
    narrow = config_from_recipe("qonstraint-5.5")
    assert (narrow.mixup, narrow.cutmix, narrow.randaugment, narrow.dynamic_drop_path) == (True, False, False, False)


def test_the_thesis_s_recipe() -> None:
    config = config_from_recipe("mobilevit-thesis")
    assert (config.data, config.batch_size, config.seed, config.amp) == ("cifar-10", 128, 42, "fp16")
    assert (config.lr, config.min_lr, config.weight_decay, config.clip_norm) == (1e-3, 1e-6, 1e-4, 1.0)
    assert (config.input_size, config.interpolation, round(config.crop * config.input_size)) == (256, "bicubic", 224)
    assert (config.schedule, config.label_smoothing, config.mixup, config.cutmix) == ("cosine", 0.0, False, False)
    assert (config.pad, config.normalisation, config.all_images) == (4, "cifar-10", False)
    small = config_from_recipe("mobilevit-64")
    assert (small.input_size, small.amp, small.batch_size) == (64, "auto", 128)


def test_overrides_win_and_none_keeps_the_recipe_s_value() -> None:
    config = config_from_recipe(recipe="qonstraint-5.9", model="nano", epochs=None, swa=False)
    assert (config.model, config.epochs, config.swa) == ("nano", 70, False)
    with pytest.raises(InputError, match="did you mean 'small'"):
        config_from_recipe("smal")


def test_a_record_gives_the_same_configuration_and_other_versions_are_refused() -> None:
    config = config_from_recipe("qonstraint-5.9", seed=3)
    assert config_from_record(config.to_dict()) == config
    with pytest.raises(InputError, match="another version of qdeploy .*flip"):
        config_from_record({**config.to_dict(), "flip": True})


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [("epochs", "3", "int"), ("epochs", None, "int"), ("swa", 1, "bool"), ("lr", "0.1", "float"), ("amp", 3, "str")],
)
def test_a_record_with_a_value_of_another_type_is_refused(field: str, value: Any, kind: str) -> None:
    with pytest.raises(InputError, match=f"damaged: {field} is {value!r}, expected {kind}"):
        config_from_record({**TrainConfig().to_dict(), field: value})
    assert config_from_record({**TrainConfig().to_dict(), "clip_norm": 1}).clip_norm == 1.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": "cosine"}, r"boosts, .*, dynamic_drop_path: only with schedule confidence, found 'cosine'"),
        ({"augmentation": "shift"}, "randaugment: only with augmentation low or mid or high, found 'shift'; change it "
                                    "or set randaugment=off"),
    ],
)  # fmt: skip
def test_switches_that_would_do_nothing_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        config_from_recipe("qonstraint-5.9", **fields)
    found = parse_settings(tuple(str(error.value).partition("or set ")[2].split()))
    assert config_from_recipe("qonstraint-5.9", **fields, **found).swa  # as the text says


def test_what_counts_only_with_another_field_names_fields() -> None:
    known = TrainConfig().to_dict()
    for parts, other, values in ONLY_WITH:
        assert {*parts, other} <= known.keys()
        for value in values:
            fields: dict[str, Any] = {other: value}
            TrainConfig(**fields)
    twice = [part for parts, _, _ in ONLY_WITH for part in parts]
    assert len(twice) == len(set(twice))


def test_every_variant_of_the_ablation_is_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    ablation = importlib.import_module("ablation")
    variants = [fields for _, _, found in ablation.SETS.values() for fields in found.values()]
    configs = [config_from_recipe(**fields) for fields in variants if fields != ablation.PLAIN]
    assert {c.schedule for c in configs} == {"cosine", "confidence"}


def test_settings_on_the_command_line() -> None:
    given = parse_settings(("swa=on", "weight-decay=0.1", "augmentation=low"))
    assert given == {"swa": True, "weight_decay": 0.1, "augmentation": "low"}
    for text, words in (
        ("swa", "field=value"),
        ("swaa=1", "did you mean 'swa'"),
        ("swa=maybe", "true or false"),
        ("weight_decay=much", "must be a number"),
    ):
        with pytest.raises(InputError, match=words):
            parse_settings((text,))
    with pytest.raises(InputError, match="swa is set twice"):
        parse_settings(("swa=on", "swa=off"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("seed", -1),
        ("shift", 40),
        ("ema_decay", 1.0),
        ("amp", "int8"),
        ("schedule", "step"),
        ("augmentation", "huge"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^`?{field}`? must be "):
        TrainConfig(**{field: value})


def test_the_earlier_versions_have_a_cosine_and_little_augmentation() -> None:
    for name in ("qonstraint-5.5", "qonstraint-5.6"):
        config = config_from_recipe(name)
        assert (config.schedule, config.augmentation, config.mixup) == ("cosine", "low", True)
        others = ["boosts", "dynamic_momentum", "dynamic_ema", "hardness", "swa", "reloads", "randaugment", "cutmix"]
        assert not any(getattr(config, part) for part in others)
        assert (config.epochs, config.batch_size, config.lr) == (70, 256, 5e-4)


def test_fields_of_the_model_are_settings_too() -> None:
    given = parse_settings(("model.depths=1,2,3", "model.drop-path=0.2", "swa=off"))
    assert given == {"model_fields": {"depths": "1,2,3", "drop_path": "0.2"}, "swa": False}
    config = config_from_recipe("small", **given)
    assert config.model_changes == (("depths", "1,2,3"), ("drop_path", "0.2"))
    assert config_from_record(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InputError, match="model.depths is set twice"):
        parse_settings(("model.depths=1,2,3", "model.depths=1,1,1"))
    with pytest.raises(InputError, match="no field 'model_fields'"):
        parse_settings(("model_fields=x",))
