"""One piece of the GPU campaign; benchmarks/gpu_campaign.sh says what the pieces are and runs them.

    python benchmarks/gpu_campaign.py PIECE OUT WORK [--limit-s 420] [--epochs 40] [--dry-run]

A piece is a list of named rows. Each row is kept in OUT/PIECE.json as soon as it is there, and rows that are there are
not repeated, so a piece that was cut off goes on. Exit code: 0 complete, 1 a row failed, 3 the time was up, 4 it cannot
be made here, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

try:
    import torch
    from campaign.ablations import ablation_cells, ablation_facts
    from campaign.engines import engine_cells
    from campaign.results import Cell, Results, Row, one_line
    from campaign.sizes import REAL, TINY, Size
    from campaign.speed import data_cells, data_verdict, precision_cells, speed_cells, speed_verdict
    from campaign.training import (
        SkippedError,
        accuracy_cells,
        accuracy_verdict,
        cifar_cells,
        presets_cells,
        tiny_imagenet_cells,
        tiny_imagenet_verdict,
    )

    from qdeploy.core.errors import QdeployError
except ImportError as error:
    sys.exit(f"the library {error.name or error} is missing here: pip install 'qdeploy[train]'")

CUT_OFF, SKIPPED, INTERRUPTED = 3, 4, 130


@dataclass(frozen=True)
class Piece:
    """What a piece measures, what its rows come to, and the libraries it needs late and looks for first."""

    cells: Callable[[Size, Path], dict[str, Cell]]
    facts: Callable[[dict[str, Row]], Row] = lambda rows: {}
    needs: tuple[str, ...] = ()


def targets(verdict: Callable[[dict[str, Row]], Row]) -> Callable[[dict[str, Row]], Row]:
    return lambda rows: {"targets": verdict(rows)}


PIECES = {
    "speed": Piece(speed_cells, targets(speed_verdict)),
    "data": Piece(data_cells, targets(data_verdict)),
    "accuracy": Piece(accuracy_cells, targets(accuracy_verdict), ("matplotlib",)),
    "precision": Piece(precision_cells),
    "presets": Piece(presets_cells, needs=("matplotlib",)),
    "tiny-imagenet": Piece(tiny_imagenet_cells, targets(tiny_imagenet_verdict), ("matplotlib",)),
    "cifar-10": Piece(cifar_cells, needs=("matplotlib",)),
    "engines": Piece(engine_cells, needs=("onnx", "onnxscript", "matplotlib")),
    "ablation-recipes": Piece(partial(ablation_cells, "recipes"), ablation_facts),
    "ablation-without": Piece(partial(ablation_cells, "without"), ablation_facts),
}


def run_piece(results: Results, piece: Piece, cells: dict[str, Cell], limit_s: float) -> int:
    """Make the rows that are missing; at least one is tried, however short the time."""
    deadline, tried, failed = time.monotonic() + limit_s, 0, 0
    results.rows = {name: row for name, row in results.rows.items() if name in cells}
    results.keep("begun", **piece.facts(results.rows))
    for name, cell in cells.items():
        if name in results.rows:
            print(f"{results.piece}: {name}: was there")
            continue
        left = deadline - time.monotonic()
        if tried and left <= 0:
            return CUT_OFF
        tried += 1
        try:
            row = cell(left)
        except SkippedError as error:
            print(f"{results.piece}: skipped: {error}")
            return SKIPPED
        except (RuntimeError, OSError, QdeployError) as error:
            failed += 1
            print(f"{results.piece}: {name}: failed: {one_line(error)}")
            continue
        if row is None:
            return CUT_OFF
        results.rows[name] = row
        print(f"{results.piece}: {name}: {shown(row)}")
        results.keep("begun", **piece.facts(results.rows))
    if failed:
        return 1
    facts = piece.facts(results.rows)
    results.keep("complete", **facts)
    for what, target in facts.get("targets", {}).items():
        print(f"{results.piece}: {what}: {target}")
    return 0


def shown(row: Row) -> str:
    hidden = ("log", "dataset", "train_command", "paper_p100")
    return ", ".join(f"{name} {value}" for name, value in row.items() if name not in hidden)


def interrupt(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=PIECES)
    parser.add_argument("out", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--limit-s", type=float, default=420.0)
    parser.add_argument("--epochs", type=int, help="of the accuracy run")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU at a tiny size")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    if given.dry_run == torch.cuda.is_available():
        print(f"{given.piece}: " + ("a dry run hides the GPU itself" if given.dry_run else "there is no CUDA device"))
        return 1
    piece = PIECES[given.piece]
    missing = [name for name in piece.needs if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{given.piece}: the library {missing[0]} is missing here: pip install 'qdeploy[train]'")
        return 1
    size = TINY if given.dry_run else REAL
    size = replace(size, accuracy_epochs=given.epochs or size.accuracy_epochs)
    try:
        results = Results(given.piece, given.out, given.dry_run)
        return run_piece(results, piece, piece.cells(size, given.work), given.limit_s)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ImportError as error:
        print(f"{given.piece}: the library {error.name} is missing here")
        return 1


if __name__ == "__main__":
    sys.exit(main())
