"""What the sweep of the 36 MobileViTs says of the thesis' operators: means over all models that share one.

    qdeploy sweep --budget-minutes 150 --jobs 2 --out sweeps/grid
    python benchmarks/grid_study.py sweeps/grid/sweep.json

The thesis prints accuracies and times of an epoch on a GPU, but no latency. Latency here is of one image on one thread.
Accuracy at equal training is that of the first rung, where all 36 were trained for the same few epochs. An effect is
paired: the other two operators of a model stay as they are.
"""

from __future__ import annotations

import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

OPERATORS = {
    "convolution": ("standard", "depthwise", "grouped", "pointwise"),
    "attention": ("mha", "separable", "lowrank"),
    "fusion": ("v1", "v2", "v3"),
}
COLUMNS = ("params", "latency_fp32_ms", "latency_int8_ms", "int8_speedup", "first_val_top1")


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text())
    rows = {t["name"]: t for t in document["trials"]}
    for step in document["steps"]:
        if step["kind"] == "train" and step["rung"] == 0 and step["result"]:
            rows[step["model"]]["first_val_top1"] = step["result"]["val_top1"]
    print(
        f"{len(rows)} models, first rung {document['rungs'][0]['epochs']} epochs, on {document['environment']['cpu']}"
    )
    for place, (family, names) in enumerate(OPERATORS.items()):
        print(
            f"\n{family:12s} "
            + " ".join(f"{c:>16s}" for c in COLUMNS)
            + "   against the first, paired: fp32, int8 time"
        )
        for name in names:
            mine = [r for n, r in rows.items() if n.split("-")[1:][place] == name]
            means = [statistics.fmean(r[c] for r in mine if r[c] is not None) for c in COLUMNS]
            effects = [paired(rows, place, names[0], name, f"latency_{p}_ms") for p in ("fp32", "int8")]
            shown = ", ".join(f"{low:.2f} {middle:.2f} {high:.2f}" for low, middle, high in effects)
            print(f"{name:12s} " + " ".join(f"{m:16.3f}" for m in means) + f"   {shown}")
    faster = [r["name"] for r in rows.values() if (r["int8_speedup_low"] or 0) > 1]
    slower = [r["name"] for r in rows.values() if (r["int8_speedup_high"] or 9) < 1]
    print(f"\nINT8 is faster beyond noise for {len(faster)} of {len(rows)}, slower for {len(slower)}")


def paired(rows: dict[str, Any], place: int, first: str, other: str, column: str) -> tuple[float, float, float]:
    """Ratios of a column over all pairs of models that differ in one operator only: least, median, largest."""
    ratios = []
    for parts in product(*OPERATORS.values()):
        if parts[place] == first:
            changed = [*parts[:place], other, *parts[place + 1 :]]
            old, new = (rows["mobilevit-" + "-".join(p)][column] for p in (parts, changed))
            if old and new:
                ratios.append(new / old)
    return min(ratios), statistics.median(ratios), max(ratios)


if __name__ == "__main__":
    main()
