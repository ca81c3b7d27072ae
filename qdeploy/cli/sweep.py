"""``qdeploy sweep``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdeploy.cli.output import Bar, emit_json, extra_needed, show_table
from qdeploy.core.errors import InputError, for_command_line

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.study import SweepResult
    from qdeploy.study.record import Done
    from qdeploy.study.rows import Row

NEWEST = "newest"


@click.command("sweep")
@click.argument("data", required=False)
@click.option("--models", metavar="A,B,...", help="Names of `qdeploy models`. Default: the MobileViT grid.")
@click.option("--recipe", help="As in `qdeploy train`; default: small.")
@click.option("--epochs", type=int, help="Of every model; with a budget, the most of any. Default: the recipe's.")
@click.option("--budget-minutes", type=float, help="Train by successive halving within so much time.")
@click.option("--seed", type=int, help="Seed of every training.")
@click.option("--device", help="Of training: auto, cpu, cuda or mps. Latency is always measured on the CPU.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change any other field of the recipe.")
@click.option("--jobs", type=int, help="Trials at a time; each gets a share of the cores. Default: 1.")
@click.option("--ray", is_flag=True, help="Spread the training with Ray: over RAY_ADDRESS, or this machine.")
@click.option("--out", type=click.Path(path_type=Path), help="The sweep's folder. Default: a new one below ./sweeps.")
@click.option(
    "--resume", is_flag=False, flag_value=NEWEST, metavar="[DIR]", help="Go on with a sweep: the newest, or DIR."
)
@click.option("--retry-failed", is_flag=True, help="With --resume: try what failed again.")
@click.option("--json", is_flag=True, help="Print the result as one JSON document.")
def sweep_command(
    data: str | None,
    models: str | None,
    settings: tuple[str, ...],
    ray: bool,
    out: Path | None,
    resume: str | None,
    retry_failed: bool,
    json: bool,
    **fields: Any,
) -> int:
    """Train, export and measure many models, and show which are worth having.

    DATA as in `qdeploy train`. One row a model, the Pareto fronts of accuracy against latency, size and parameters:
    sweep.csv, sweep.html and pareto.png in the sweep's folder. Without --models, --epochs and --budget-minutes the 36
    models of the MobileViT grid share 60 minutes.
    """
    with extra_needed():
        from qdeploy import study
        from qdeploy.study import campaign
        from qdeploy.training.recipes import parse_settings

    given = {k: v for k, v in {**fields, "data": data, "models": models}.items() if v is not None}
    if resume is not None:
        if given or settings or ray or out:
            raise InputError("--resume takes everything from the sweep; give only --retry-failed or --json with it")
        folder = None if resume == NEWEST else Path(resume)
        result = _watched(lambda shown: campaign.resume(folder, shown, retry_failed=retry_failed))
    else:
        if retry_failed:
            raise InputError("--retry-failed goes with --resume")
        if models is not None:
            given["models"] = _names(models)
        config = study.SweepConfig(**given, settings=parse_settings(settings), ray=ray)
        result = _watched(lambda shown: campaign.sweep(config, out, shown))
    _show(result, json)
    return 0 if any(t.test_top1_fp32 is not None for t in result.trials) else 1


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InputError("--models names no model; give some, separated by commas, or leave it out for the grid")
    return names


def _watched(work: Any) -> SweepResult:
    """Show a sweep, and after an interruption how it goes on."""
    with Bar("sweep") as bar:
        progress = _Progress(bar)
        try:
            result: SweepResult = work(progress)
        except KeyboardInterrupt:
            if progress.folder:
                bar.line(
                    f"{progress.count} trial(s) ended in this session and are kept; "
                    f"`qdeploy sweep --resume {progress.folder}` goes on"
                )
            raise
    return result


class _Progress:
    """The sweep's reporter: a line per trial on stderr, and a bar on a terminal."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.folder: Path | None = None
        self.count = 0

    def note(self, text: str) -> None:
        self.bar.line(text)

    def started(self, folder: Path) -> None:
        self.folder = folder
        self.bar.line(f"sweep folder {folder}")

    def progress(self, done: int, total: int, text: str) -> None:
        self.bar.update(done, total, text)

    def ended(self, trial: Done, done: int, total: int, left_s: float | None) -> None:
        self.count += 1
        left = "" if left_s is None else f"; ETA {_duration(left_s)}"
        self.bar.line(f"[{trial.kind} {done}/{total}] {trial.model}: {_what(trial)}{left}")


def _what(trial: Done) -> str:
    if trial.error is not None:
        return f"failed: {for_command_line(trial.error)}"
    found = trial.result
    if trial.kind == "train":
        return f"{found['epochs']} epoch(s) in {_duration(trial.wall_s)}, val {found['val_top1']:.2f} %"
    files = found["artifacts"].items()
    if trial.kind == "export":
        return ", ".join(f"{p} {a['test_top1']:.2f} %" for p, a in files)
    return ", ".join(f"{p} {a['latency_ms']:.3f} ms" for p, a in files)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _show(result: SweepResult, json: bool) -> None:
    if json:
        emit_json(result.to_dict())
        return
    show_table(_table(result.trials))
    for trial in result.trials:
        if trial.error:
            print(f"{trial.name}: {for_command_line(trial.error)}")
    for axis in ("latency", "size", "params"):
        names = [f"{p['name']} {p['precision']}" for p in result.pareto if p["axis"] == axis]
        print(f"front of accuracy against {axis}: {', '.join(names) or 'none'}")
    if len({t.rung for t in result.trials if t.rung}) > 1:
        print("rungs differ in epochs: a model of an earlier rung might do better if trained as long")
    print(f"report: {result.out}/sweep.html, sweep.csv, pareto.png")


def _table(rows: tuple[Row, ...]) -> Table:
    from rich.table import Table

    head = (
        "params",
        "M MACs",
        "rung",
        "epochs",
        "val %",
        "fp32 %",
        "int8 %",
        "fp32 ms",
        "int8 ms",
        "int8 kB",
        "s/epoch",
    )
    table = Table()
    table.add_column("model", no_wrap=True)
    for name in head:
        table.add_column(name, justify="right")
    table.add_column("fronts")
    for r in sorted(rows, key=lambda r: -max(r.test_top1_fp32 or 0.0, r.test_top1_int8 or 0.0)):
        table.add_row(
            r.name,
            f"{r.params:,}",
            f"{r.macs / 1e6:.1f}",
            _cell(r.rung),
            _cell(r.epochs),
            _cell(r.val_top1, 2),
            _cell(r.test_top1_fp32, 2),
            _cell(r.test_top1_int8, 2),
            _cell(r.latency_fp32_ms, 3),
            _cell(r.latency_int8_ms, 3),
            _cell(r.size_int8_bytes and r.size_int8_bytes / 1e3),
            _cell(r.epoch_s, 1),
            "failed" if r.error and not r.pareto else r.pareto,
        )
    return table


def _cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
