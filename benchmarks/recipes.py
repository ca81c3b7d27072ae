"""Which recipe trains nano best on the embedded 2,000 images: the evidence for the default.

    python benchmarks/recipes.py [SEEDS] [EPOCHS]

Every row: the same model, data, epochs and batch, several seeds; top-1 of the chosen weights on the 1,000 test
images, whose own sampling error is about +-2.1 points (95 %).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import keep

from qdeploy.training.loop import train
from qdeploy.training.recipes import config_from_recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "small (default)": {"recipe": "small"},
    "confidence, lr 5e-4 (the paper's)": {"recipe": "confidence", "lr": 5e-4},
    "confidence, lr 1e-3": {"recipe": "confidence", "lr": 1e-3},
}


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 36
    rows = []
    for name, fields in VARIANTS.items():
        changes = {k: v for k, v in fields.items() if k != "recipe"}
        test, val, seconds = [], [], []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                config = config_from_recipe(fields["recipe"], model="nano", epochs=epochs, seed=seed, **changes)
                result = train(config, Path(folder) / "run")
            test.append(round(result.test_top1 or 0.0, 2))
            val.append(round(result.val_top1, 2))
            seconds.append(round(result.seconds))
        rows.append(
            {
                "variant": name,
                "test_top1": test,
                "mean": round(statistics.fmean(test), 2),
                "spread": round(max(test) - min(test), 2),
                "val_top1": val,
                "seconds": seconds,
                "seeds": seeds,
            }
        )
        print(rows[-1], flush=True)
        keep("recipes", rows, model="nano", data="fashion-mnist-mini", epochs=epochs)


if __name__ == "__main__":
    main()
