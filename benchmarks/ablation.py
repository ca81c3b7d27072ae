"""Which parts of a recipe help a small model on little data: the evidence for the default recipe.

    python benchmarks/ablation.py recipes  [--seeds 3] [--epochs 36]     whole recipes, nano
    python benchmarks/ablation.py without  [--seeds 3] [--epochs 12]     the paper's recipe without each part, nano-a
    python benchmarks/ablation.py add      [--seeds 3] [--epochs 12]     recipe small with each part added, nano-a
    python benchmarks/ablation.py one-nano-a [--seeds 3]                 one change at a time, nano-a, 12 epochs
    python benchmarks/ablation.py one-nano   [--seeds 3]                 the same, nano, 24 epochs
    python benchmarks/ablation.py heads      [--seeds 3]                 the three heads, nano-a, 12 epochs
    python benchmarks/ablation.py groups     [--seeds 3]                 groups and a channel shuffle, a MobileViT
    python benchmarks/ablation.py distilled --teacher RUN,... [--seeds 3] nano, 36 epochs, without and with teachers

The plain loop is benchmarks/plain_loop.py.
Every run trains on the embedded 2,000 images and is scored on the 10,000 test images of the full Fashion-MNIST (which
must be on the machine; none of them is in the embedded training or validation split). A run costs the same number of
images everywhere; its CPU time is reported. Finished runs are kept in the results file and not repeated. What did
nothing in the complete run, such as a restart that was never due, is not trained without again: the two are the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, keep
from plain_loop import train_plainly
from safetensors.torch import load_file
from torch import nn

from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Split
from qdeploy.models.registry import create_model
from qdeploy.training import TrainConfig, config_from_recipe, train
from qdeploy.training.device import choose_precision
from qdeploy.training.distributed import World
from qdeploy.training.learner import Learner
from qdeploy.training.recipes import CONTROLLER, MECHANISMS

PLAIN = {"recipe": "plain"}
PAPER = {"recipe": "qonstraint-5.9", "batch_size": 64}
COSINE = {
    "schedule": "cosine", "label_smoothing": 0.1, "swa": False, "reloads": False, **dict.fromkeys(CONTROLLER, False),
}  # fmt: skip
CONTROLLED = {"schedule": "confidence", "best_epoch": "within-error", **dict.fromkeys(CONTROLLER, True)}


def distilled(teachers: str) -> dict[str, dict[str, Any]]:
    """Recipe small without and with teachers, at the same length."""
    return {"small": {"recipe": "small"}, "small + teacher": {"recipe": "small", "teacher": teachers}}


def one_change(epochs: int, parts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Variants that differ from the first, or from recipe small, in one thing, and in nothing that follows from it.

    One cosine in place of the controller's rate keeps its floor, its warm-up of one epoch, the choice of the epoch, SWA
    and the reloads. It cannot keep what only the controller can drive, so it stands beside the recipe without that.
    """
    undriven = dict.fromkeys(("dynamic_momentum", "dynamic_ema", "dynamic_smoothing", "dynamic_drop_path"), False)
    cosine = {
        "schedule": "cosine", "best_epoch": "highest", "min_lr": 1e-4, "warmup_share": 1 / epochs,
        **dict.fromkeys(CONTROLLER, False),
    }  # fmt: skip
    return {
        "paper, complete": PAPER,
        **{f"paper without {part}": {**PAPER, part: False} for part in parts},
        "paper, only the rate is driven": {**PAPER, **undriven},
        "the same with one cosine to the same floor": {**PAPER, **cosine},
        "small": {"recipe": "small"},
        "small + controller": {"recipe": "small", **CONTROLLED},
        "small + controller without dynamic_momentum": {"recipe": "small", **CONTROLLED, "dynamic_momentum": False},
        "small + only the rate is driven": {"recipe": "small", **CONTROLLED, **undriven},
    }


def fields(**values: str) -> dict[str, Any]:
    """Recipe small of a model with other fields."""
    return {"recipe": "small", "model_fields": values}


SETS: dict[str, tuple[str, int, dict[str, dict[str, Any]]]] = {
    "recipes": (
        "nano",
        36,
        {
            "small (the default)": {"recipe": "small"},
            "plain loop": PLAIN,
            "paper, complete": PAPER,
            "paper, without the controller (one cosine)": {**PAPER, **COSINE},
        },
    ),
    "without": (
        "nano-a",
        12,
        {
            "paper, complete": PAPER,
            "without the controller (one cosine)": {**PAPER, **COSINE},
            **{f"without {part}": {**PAPER, part: False} for part in MECHANISMS},
        },
    ),
    "add": (
        "nano-a",
        12,
        {
            "small": {"recipe": "small"},
            "plain loop": PLAIN,
            "small + label smoothing 0.1": {"recipe": "small", "label_smoothing": 0.1},
            "small + mid augmentation": {"recipe": "small", "augmentation": "mid"},
            "small + MixUp": {"recipe": "small", "mixup": True},
            "small + CutMix": {"recipe": "small", "cutmix": True},
            "small without EMA": {"recipe": "small", "ema_decay": 0.0},
        },
    ),
    "distilled": ("nano", 36, {}),
    "heads": ("nano-a", 12, {head: fields(head=head) for head in ("gap", "sota", "gap+sota")}),
    "groups": (
        "mobilevit-grouped-separable-v2",
        12,
        {
            f"{groups} groups{', ' * bool(more)}{' '.join(more.values())}": fields(groups=groups, **more)
            for groups in ("2", "4")
            for more in ({}, {"mixing": "shuffle"})
        },
    ),
    "one-nano-a": ("nano-a", 12, one_change(12, MECHANISMS)),
    "one-nano": (
        "nano", 24, one_change(24, ("boosts", "plateau_resets", "restarts", "dynamic_momentum")),
    ),
}  # fmt: skip


EVENTS = {"boosts": "boost", "plateau_resets": "reset", "restarts": "restart", "reloads": "reload"}
"""What the log says when one of these parts acts."""
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--teacher", default="", help="of `distilled`: runs or model files, separated by commas")
    parser.add_argument("--only", help="a part of a variant's name")
    arguments = parser.parse_args()
    model, epochs, variants = SETS[arguments.set]
    if arguments.set == "distilled":
        if not arguments.teacher:
            parser.error("distilled needs --teacher")
        variants = distilled(arguments.teacher)
    epochs = arguments.epochs or epochs
    test = load_dataset("fashion-mnist").splits["test"]
    name = f"ablation_{arguments.set}"
    runs = finished(name)
    for seed in range(arguments.seeds):
        for label, fields in variants.items():
            if (label, seed) in runs or (arguments.only and arguments.only not in label):
                continue
            complete = runs.get(("paper, complete", seed), {})
            if is_the_same(label, complete):
                runs[label, seed] = {**complete, "cpu_s": 0}
            else:
                runs[label, seed] = one_run({"model": model, "epochs": epochs, "seed": seed, **fields}, test)
            print(label, seed, runs[label, seed], flush=True)
            rows = [row(v, [runs[v, s] for s in range(arguments.seeds) if (v, s) in runs]) for v in variants]
            keep(name, [r for r in rows if r["n"]], model=model, epochs=epochs, train_images=2000, test_images=10_000)


def is_the_same(label: str, complete: Run) -> bool:
    """Tell whether a run without a part is the complete run, in which that part did nothing."""
    event = EVENTS.get(label.removeprefix("paper without "))
    return event is not None and "events" in complete and event not in complete["events"].split()


def one_run(fields: dict[str, Any], test: Split) -> Run:
    """Train as the fields say and score the result in float32."""
    begin = time.process_time()
    if fields["recipe"] == PLAIN["recipe"]:
        config = config_from_recipe(**{**fields, "recipe": "small"})
        dataset = load_dataset(config.data)
        torch.manual_seed(config.seed)
        model = create_model(config.model, 10)
        train_plainly(model, dataset.splits["train"], dataset.preprocessing, config.epochs)
        cpu = time.process_time() - begin
        return {
            "test_top1": score(model, config, test),
            "val_top1": score(model, config, dataset.splits["val"]),
            "cpu_s": round(cpu),
        }
    config = config_from_recipe(**fields)
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, Path(folder) / "run")
        cpu = time.process_time() - begin
        with (Path(result.run) / "log.csv").open() as log:
            events = " ".join(row["events"] for row in csv.DictReader(log) if row.get("events"))
        (weights,) = Path(result.run).glob("best-*.safetensors")
        model = create_model(config.model, 10, changes=config.model_changes)
        model.load_state_dict(load_file(weights))
    return {"test_top1": score(model, config, test), "val_top1": result.val_top1, "cpu_s": round(cpu), "events": events}


def score(model: nn.Module, config: TrainConfig, split: Split) -> float:
    learner = Learner(
        model, config, choose_precision("cpu", "off"), load_dataset().preprocessing, World(device=torch.device("cpu"))
    )
    confusion = learner.confusion(model, split, 10)
    return round(100 * confusion.trace().item() / len(split), 2)


def row(label: str, runs: list[Run]) -> dict[str, Any]:
    values = [r["test_top1"] for r in runs]
    return {
        "variant": label,
        "n": len(runs),
        "mean": round(statistics.fmean(values), 2) if runs else None,
        "std": round(statistics.stdev(values), 2) if len(runs) > 1 else None,
        "test_top1": values,
        "val_top1": [r["val_top1"] for r in runs],
        "cpu_s": [r["cpu_s"] for r in runs],
        "events": [r.get("events") for r in runs],
        "threads": os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads())),
    }


def finished(name: str) -> dict[tuple[str, int], Run]:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    found = {}
    for r in json.loads(path.read_text())["rows"]:
        for seed in range(r["n"]):
            kept = {key: r[key][seed] for key in ("test_top1", "val_top1", "cpu_s")}
            events = r.get("events", [None] * r["n"])[seed]
            found[r["variant"], seed] = kept if events is None else {**kept, "events": events}
    return found


if __name__ == "__main__":
    sys.exit(main())
