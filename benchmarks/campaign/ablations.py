"""The pieces ablation-recipes and ablation-without: benchmarks/ablation.py, row by row."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from time import perf_counter

import ablation

from campaign.results import Cell, Row
from campaign.sizes import Size
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Split


def ablation_cells(name: str, size: Size, _: Path) -> dict[str, Cell]:
    model, epochs, variants = ablation.SETS[name]
    if size.variants:
        model, epochs = size.trained["model"], size.epochs
    chosen = list(variants.items())[: size.variants]
    return {
        f"{label}, seed {seed}": partial(
            ablation_row, label, {"model": model, "epochs": epochs, **fields, "seed": seed}, size
        )
        for seed in range(size.seeds)
        for label, fields in chosen
    }


def ablation_row(label: str, fields: Row, size: Size, _: float) -> Row:
    begin = perf_counter()
    values = ablation.one_run(fields, test_split(size.data))
    shown = {name: fields[name] for name in ("model", "epochs", "seed")}
    return {"variant": label, **shown, **values, "seconds": round(perf_counter() - begin, 1)}


@cache
def test_split(data: str) -> Split:
    return load_dataset(data).splits["test"]


def ablation_facts(rows: dict[str, Row]) -> Row:
    labels = dict.fromkeys(row["variant"] for row in rows.values())
    summary = {label: ablation.row(label, [r for r in rows.values() if r["variant"] == label]) for label in labels}
    return {"variants": summary}
