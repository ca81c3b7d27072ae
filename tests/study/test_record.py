"""``sweep.json``: read back as it was written, by this version or an earlier one; what is damaged is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core.errors import InputError
from qdeploy.study.record import load_record
from qdeploy.study.rows import pareto_of, rows_of
from tests.study.sweeps import measured_sweep

EARLIER = Path(__file__).parents[2] / "benchmarks" / "results" / "grid_sweep.json"
"""Written before records had types."""


def test_a_record_is_read_back(tmp_path: Path) -> None:
    record = measured_sweep(tmp_path)
    record.save(trials=[], pareto=[])
    assert load_record(tmp_path) == record


def test_a_record_of_an_earlier_version_opens_and_is_written_the_same(tmp_path: Path) -> None:
    text = EARLIER.read_text()
    (tmp_path / "sweep.json").write_text(text)
    record, values = load_record(tmp_path), json.loads(text)
    assert len(record.models) == 36
    rows = rows_of(record)
    later = dict.fromkeys(f"{share}_{precision}" for precision in ("fp32", "int8") for share in ("precision", "recall"))
    later |= dict.fromkeys(("chance", "flash_int8_bytes", "ram_int8_bytes"))
    values["trials"] = [{**later, **trial} for trial in values["trials"]]  # columns that there were not yet are empty
    for step in values["steps"]:
        if step["kind"] == "train":
            step["result"].setdefault("chance", None)
        for file in step["result"]["artifacts"].values() if step["kind"] == "export" else ():
            file.update(dict.fromkeys(("file", "flash_bytes", "ram_bytes")))
    written = {**record.to_dict(), "trials": [vars(r) for r in rows], "pareto": [vars(p) for p in pareto_of(rows)]}
    assert json.loads(json.dumps(written)) == values


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        inside(values, keys).pop(keys[-1])

    return change


def put(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        inside(values, keys)[keys[-1]] = value

    return change


def inside(values: Any, keys: tuple[str, ...]) -> Any:
    for key in keys[:-1]:
        values = values[int(key) if isinstance(values, list) else key]
    return values


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop("plan", "models"), "'plan.models' is missing"),
        (drop("plan", "models", "nano", "macs"), "'plan.models.nano.macs' is missing"),
        (put("many", "spent_s"), "'spent_s' is no float"),
        (put(True, "plan", "most_epochs"), "'plan.most_epochs' is no int"),
        (put([1], "rungs"), "'rungs.0' is no dict"),
        (put([1, "two"], "plan", "epochs"), "'plan.epochs.1' is no int"),
        (put("none", "steps", "0", "result", "val_top1"), "'steps.0.result.val_top1' is no float"),
        (put([1.9], "steps", "2", "result", "int8_speedup", "ci95"), "ci95' has 1 values, expected 2"),
        (put("serve", "steps", "1", "kind"), "'steps.1.kind' is 'serve', expected train, export, measure"),
        (put({"epochs": 1}, "settings"), "another version of qdeploy"),
        (put("3", "settings", "jobs"), "'settings.jobs' is no int"),
        (put(2, "schema"), "of another version"),
    ],
)
def test_damage_is_named(change: Callable[[dict[str, Any]], None], text: str, tmp_path: Path) -> None:
    values = measured_sweep(tmp_path).to_dict()
    change(values)
    (tmp_path / "sweep.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=text):
        load_record(tmp_path)
