"""How often the stress set alone rejects the INT8 file of a real model.

    python benchmarks/stress_rejections.py [--only MODEL ...] [--seeds 2] [--runs FOLDER] [--rows FILE]

Models of every family are trained on the embedded images (accuracy is in the rows), then exported as users do it, with
the float search, and with every part in INT8, which is harder: for the targets x86, arm and tensorrt each. `alone` says
that a file is within the accuracy budget of 1 point, gives numbers everywhere, and is rejected for its answers to the
stress set; `stressed` names the images. A file that is only slower counts as kept. With `--runs`, trained runs are kept
in a folder, and those that are there are not trained again; with `--rows`, rows are added to a file of JSON lines as
soon as they are done, and exports that are in it are not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import keep

EPOCHS = {
    "pico": 6,
    "nano": 4,
    "nano-a": 6,
    "micro": 1,
    "mobilevit-pointwise-separable-v3": 4,
    "torchvision/mobilenet_v2": 3,
    "torchvision/resnet18": 2,
}
TARGETS = "x86,arm,tensorrt"
CHOICES = {"searched": ("--search-seconds", "20"), "all INT8": ("--float-layers", "none")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=EPOCHS, default=list(EPOCHS), metavar="MODEL")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model")
    parser.add_argument("--runs", type=Path, help="folder of trained runs")
    parser.add_argument("--rows", type=Path, help="file of rows that are done, continued")
    given = parser.parse_args()
    lines = given.rows.read_text().splitlines() if given.rows and given.rows.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(r["model"], r["seed"], r["choice"]) for r in rows}
    with tempfile.TemporaryDirectory() as place:
        runs = given.runs or Path(place) / "runs"
        for seed in range(given.seeds):
            for model in given.only:
                if all((model, seed, choice) in done for choice in CHOICES):
                    continue
                run = trained(model, seed, runs)
                for choice in (c for c in CHOICES if (model, seed, c) not in done):
                    found = files(model, seed, choice, run, Path(place) / "export")
                    rows += found
                    if given.rows:
                        with given.rows.open("a") as file:
                            file.writelines(f"{json.dumps(row)}\n" for row in found)
    counts = {
        choice: {
            "files": len(of := [r for r in rows if r["choice"] == choice]),
            "rejected": sum(r["outcome"] == "rejected" for r in of),
            "rejected by the stress set alone": sum(r["alone"] for r in of),
        }
        for choice in CHOICES
    }
    keep("stress_rejections", rows, counts=counts, epochs=EPOCHS)
    print(json.dumps(counts, indent=2))


def trained(model: str, seed: int, runs: Path) -> Path:
    """Train a model, or take the run that is there."""
    run = runs / f"{model.replace('/', '-')}-{seed}"
    if not (run / "run.json").exists():
        words = ["train", "--model", model, "--epochs", EPOCHS[model], "--seed", seed, "--threads", 1, "--out", run]
        qdeploy(*words, "--device", "cpu")
    return run


def files(model: str, seed: int, choice: str, run: Path, out: Path) -> list[dict[str, Any]]:
    """Export a run; returns a row for each of its INT8 files."""
    words = ["export", run, "--int8", "--target", TARGETS, "--allow-slower", "--json", "--out", out]
    report = json.loads(qdeploy(*words, *CHOICES[choice]))
    fp32 = next(a for a in report["artifacts"] if a["precision"] == "fp32")
    rows = []
    for int8, verdict in zip(report["int8"], report["verdicts"], strict=True):
        lossy = verdict["shown"] == "over" or bool(verdict["not_finite"])
        rows.append(
            {
                "model": model,
                "seed": seed,
                "fp32_top1": fp32["accuracy"]["top1"],
                "choice": choice,
                "target": int8["target"],
                "float_units": int8["float_units"],
                "outcome": verdict["outcome"],
                "reasons": verdict["reasons"],
                "alone": verdict["outcome"] == "rejected" and bool(verdict["stressed"]) and not lossy,
                "val_points": verdict["loss"]["difference"]["points"],
                "val_sqnr_db": int8["stress"]["val_sqnr_db"],
                "stressed": [r for r in int8["stress"]["rows"] if r["broken"] or not r["finite"]],
                "others": sum(not r["same_top1"] for r in int8["stress"]["rows"]),
                "images": len(int8["stress"]["rows"]),
            }
        )
    return rows


def qdeploy(*words: object) -> str:
    """Run a command; a negative verdict is an answer, too."""
    done = subprocess.run([sys.executable, "-m", "qdeploy", *map(str, words)], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
