from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core.errors import InputError, MissingDependencyError
from qdeploy.core.machine import usable_cores
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.models.registry import GRID
from qdeploy.study import SweepConfig, checks
from qdeploy.study.process import LocalPool


def test_the_default_is_the_grid_on_the_embedded_data() -> None:
    assert checks.grid() == GRID
    assert len(GRID) == 36
    config = checks.completed(SweepConfig())
    assert (config.data, config.seed) == (EMBEDDED, 0)


def test_models_are_counted_for_the_data_s_classes_and_the_recipe_s_size() -> None:
    config = SweepConfig(models=("nano-ar",), data=EMBEDDED)
    small = checks.known_models(config)["nano-ar"]
    assert (small.family, small.params, small.input_size) == ("qonstraint", 828_542, 64)
    large = checks.known_models(SweepConfig(models=("nano-ar",), data=EMBEDDED, settings={"input_size": 128}))
    assert large["nano-ar"].input_size == 128
    assert large["nano-ar"].macs > 3 * small.macs


def test_what_does_not_fit_a_microcontroller_is_left_out_with_its_reason() -> None:
    notes: list[str] = []
    config = SweepConfig(
        models=("pico", "nano", "resnet-20", "micro"), data=EMBEDDED, baseline="micro", max_flash=300_000
    )
    models = checks.known_models(config)
    assert list(checks.fitting(config, models, notes.append)) == ["pico", "micro"]
    assert notes[0] == "nano is left out: it has 828,542 parameters, and `max_flash` is 300,000 bytes"
    assert notes[1].startswith("resnet-20 is left out: it needs ")
    assert notes[1].endswith(" bytes, and `max_flash` is 300,000")
    assert len(notes) == 2
    small = SweepConfig(models=("pico",), data=EMBEDDED, max_flash=256 << 10, max_ram=50_000)
    with pytest.raises(InputError, match="no model fits `max_flash` of 262,144 bytes and `max_ram` of 50,000 bytes"):
        checks.fitting(small, {"pico": models["pico"]}, notes.append)
    assert notes[2] == "pico is left out: it needs 50,960 bytes, and `max_ram` is 50,000"
    free = SweepConfig(models=("nano",), data=EMBEDDED)
    assert checks.fitting(free, models, notes.append) is models


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_flash": 0}, "`max_flash` must be at least 1 byte, found 0"),
        ({"max_ram": -1}, "`max_ram` must be at least 1 byte"),
        ({"models": ("nano", "micro", "nano")}, "names 'nano' twice"),
        ({"budget_minutes": 0.0}, "`budget_minutes` must be positive, found 0"),
        ({"budget_minutes": -3.0}, "must be positive"),
        ({"budget_minutes": float("nan")}, "must be positive"),
        ({"budget_minutes": float("inf")}, "must be positive"),
        ({"epochs": 0}, "`epochs`"),
        ({"jobs": 0}, "`jobs`"),
        ({"jobs": usable_cores() + 1}, "the cores of this machine"),
        ({"settings": {"epochs": 3}}, "of a sweep cannot change 'epochs'"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        SweepConfig(**fields)


def test_a_saved_configuration_is_read_back() -> None:
    config = SweepConfig(models=("nano",), settings={"swa": True}, budget_minutes=3.5)
    assert SweepConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    limited = SweepConfig(models=("pico",), max_flash=256 << 10, max_ram=96 << 10)
    assert SweepConfig.from_dict(json.loads(json.dumps(limited.to_dict()))) == limited
    assert limited.on_integers
    assert not config.on_integers
    with pytest.raises(InputError, match="another version.*differs in colour"):
        SweepConfig.from_dict({**config.to_dict(), "colour": 1})


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "qdeploy.study.ray_pool", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qdeploy\[ray\]'"):
        checks.open_pool(SweepConfig(ray=True))
    assert isinstance(checks.open_pool(SweepConfig()), LocalPool)


def test_the_cores_are_shared() -> None:
    assert SweepConfig().cores == usable_cores()
    assert SweepConfig(jobs=usable_cores()).cores == 1


def test_ray_is_imported_in_one_place_of_a_room() -> None:
    room = Path(checks.__file__).parents[1]
    own = [p for p in room.rglob("*.py") if not p.parent.name.endswith("_files")]  # these are copied into kits
    found = {p.name for p in own if "import ray\n" in p.read_text() or "from ray" in p.read_text()}
    assert found == {"ray_pool.py", "ray_predict.py"}
