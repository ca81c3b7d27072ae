"""The command ``qdeploy sweep``: its options, its progress and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli.options import GOING_ON, LIMITS, NEWEST, TRAINING, WHERE, Formats, Json, Settings, Threads, Verbose
from qdeploy.cli.output import Bar, emit_json, extra_needed, say
from qdeploy.cli.tables import show_table, table
from qdeploy.core.errors import InputError, for_command_line
from qdeploy.core.words import counted

if TYPE_CHECKING:
    from qdeploy.study import SweepResult
    from qdeploy.study.judgement import Judgement
    from qdeploy.study.record import Step
    from qdeploy.study.row import Row


def sweep_command(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="As in `qdeploy train`.", show_default=False)
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Names of `qdeploy models`, or package.module:Class. Default: the MobileViT grid."
        ),
    ] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(help="Train by successive halving within so much time.", rich_help_panel=TRAINING)
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="As in `qdeploy train`; default: small.", rich_help_panel=TRAINING)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Of every model; with --budget-minutes, the most of any. Default: the recipe's.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of every training. Default: the recipe's.", rich_help_panel=TRAINING)
    ] = None,
    max_params: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Leave out models with more parameters, e.g. 1M or 600k.", rich_help_panel=LIMITS
        ),
    ] = None,
    max_flash: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Leave out models whose INT8 form needs more flash on a microcontroller, e.g. 256K.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_ram: Annotated[
        str | None, typer.Option(metavar="BYTES", help="The same of RAM, e.g. 96K.", rich_help_panel=LIMITS)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Train it too, and judge the others against it.", rich_help_panel=LIMITS),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Points of top-1 allowed below the baseline. Default: 1.", rich_help_panel=LIMITS),
    ] = None,
    formats: Formats = None,
    settings: Settings = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Of training: auto, cpu, cuda or mps. Default: auto. Latency is always measured on the CPU.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Trials at a time; each gets a share of the cores. Default: 1.", rich_help_panel=WHERE),
    ] = None,
    threads: Threads = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Spread the training with Ray: over RAY_ADDRESS, or this machine.", rich_help_panel=WHERE
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The sweep's folder. Default: a new one below ./sweeps.", rich_help_panel=GOING_ON),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Go on with a sweep; without DIR, with the newest.", rich_help_panel=GOING_ON),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="With --resume: try what failed again.", rich_help_panel=GOING_ON),
    ] = False,
    verbose: Verbose = False,
    json: Json = False,
) -> int:
    """Train, export and measure many models, and show which are worth having.

    Every model is a trial and a row; the Pareto fronts of accuracy against latency, size and parameters are in
    sweep.csv, sweep.html and pareto.png in the sweep's folder. Without --models, --epochs and --budget-minutes the 36
    models of the MobileViT grid share 60 minutes.
    """
    with extra_needed():
        from qdeploy import study
        from qdeploy.study import campaign
        from qdeploy.training.recipes import parse_settings

    options = {
        "data": data,
        "models": models,
        "recipe": recipe,
        "epochs": epochs,
        "budget_minutes": budget_minutes,
        "seed": seed,
        "device": device,
        "jobs": jobs,
        "threads": threads,
        "max_params": None if max_params is None else _count(max_params),
        "max_flash": None if max_flash is None else _bytes(max_flash, "--max-flash"),
        "max_ram": None if max_ram is None else _bytes(max_ram, "--max-ram"),
        "baseline": baseline,
        "max_drop": max_drop,
    }
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    if resume is not None:
        if given.keys() - {"jobs"} or settings or formats or ray or out:
            raise InputError(
                "--resume takes everything from the sweep; give only --jobs, --retry-failed or --json with it"
            )
        folder = None if resume == NEWEST else Path(resume)
        result = _watched(lambda shown: campaign.resume(folder, shown, retry_failed=retry_failed, jobs=jobs))
    else:
        if retry_failed:
            raise InputError("--retry-failed goes with --resume")
        if max_drop is not None and baseline is None:
            raise InputError("--max-drop is measured from a model; give --baseline MODEL too")
        if models is not None:
            given["models"] = _names(models)
        changes = parse_settings(tuple(settings or ()))
        if formats is not None:
            if "formats" in changes:
                raise InputError("formats is given twice, with --set and as an option of its own; give it once")
            changes["formats"] = formats
        config = study.SweepConfig(**given, settings=changes, ray=ray)
        result = _watched(lambda shown: campaign.sweep(config, out, shown))
    if json:
        emit_json(result.to_dict())
    else:
        show(result, verbose)
    failed = result.judgement is not None and result.judgement.pick is None
    return 0 if any(t.test_top1_fp32 is not None for t in result.trials) and not failed else 1


def _count(text: str) -> int:
    """Turn 1M, 600k or 602234 into a number."""
    return _scaled(text, 10**3, "--max-params must be a number such as 1M, 600k or 602234")


def _bytes(text: str, option: str) -> int:
    """Turn 1M, 256K or 262144 into bytes; K is 1024 of them."""
    return _scaled(text, 1 << 10, f"{option} must be bytes such as 1M, 256K (of 1024) or 262144")


def _scaled(text: str, thousand: int, expected: str) -> int:
    scale = {"k": thousand, "m": thousand**2}.get(text[-1:].lower(), 1)
    try:
        return round(float(text[:-1] if scale > 1 else text) * scale)
    except (ValueError, OverflowError) as error:
        raise InputError(expected, found=f"'{text}'") from error


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
                    f"{counted(progress.count, 'trial')} ended in this session, kept; "
                    f"`qdeploy sweep --resume {progress.folder}` goes on"
                )
            raise
    return result


class _Progress:
    """Shows a sweep's progress: a line per step on stderr, and a bar on a terminal."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.folder: Path | None = None
        self.count = 0

    def note(self, text: str) -> None:
        self.bar.line(text)

    def started(self, folder: Path) -> None:
        self.folder = folder
        self.bar.line(f"sweep folder {folder}")

    def phase(self, done: int, total: int, text: str) -> None:
        self.bar.update(done, total, text)

    def ended(self, step: Step, done: int, total: int, left_s: float | None) -> None:
        self.count += 1
        left = "" if left_s is None else f"; ETA {_duration(left_s)}"
        self.bar.line(f"[{step.kind} {done}/{total}] {step.model}: {_what(step)}{left}")


def _what(step: Step) -> str:
    from qdeploy.study.results import Exported, Trained

    found = step.result
    if found is None:
        return f"failed: {step.error}"
    if isinstance(found, Trained):
        return f"{counted(found.epochs, 'epoch')} in {_duration(step.wall_s)}, val {found.val_top1:.2f} %"
    if isinstance(found, Exported):
        return ", ".join(f"{p} {file.test_top1:.2f} %" for p, file in found.artifacts.items())
    return ", ".join(f"{p} {_cell(file.latency_ms, 3)} ms" for p, file in found.artifacts.items())


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def show(result: SweepResult, verbose: bool) -> None:
    """Print the trials, the best first, what failed, and the fronts."""
    from qdeploy.study.rows import noise_of

    best_first = sorted(result.trials, key=lambda r: -max(r.test_top1_fp32 or 0.0, r.test_top1_int8 or 0.0))
    show_table(table(_HEAD, map(_row, best_first), words=(0, len(_HEAD) - 1)))
    if verbose:
        show_table(table(_MORE, map(_more, best_first), title="size and training"))
        show_table(table(_CLASSES, map(_classes, best_first), title="mean over the classes"))
    for trial in result.trials:
        if trial.error:
            say(f"{trial.name}: {for_command_line(trial.error)}")
    for axis in ("latency", "size", "params"):
        names = [f"{p.name} {p.precision}" for p in result.pareto if p.axis == axis]
        say(f"front of accuracy against {axis}: {', '.join(names) or 'none'}")
    if len({t.rung for t in result.trials if t.rung}) > 1:
        say("rungs differ in epochs: a model of an earlier rung might do better if trained as long")
    flat = [r for r in result.trials if r.learnt_nothing]
    if flat:
        said = ", ".join(r.name for r in flat)
        say(f"no better than always answering the largest class ({flat[0].chance:.1f} %), and on no front: {said}")
    if noise := noise_of(result.trials):
        say(noise)
    if result.judgement is not None:
        _show_judgement(result.judgement)
    files = ("sweep.html", "sweep.csv", "pareto.png", "learning.png")
    made = [name for name in files if (Path(result.out) / name).is_file()]
    say(f"report: {result.out}/{', '.join(made)}")


def _show_judgement(found: Judgement) -> None:
    say(f"baseline {found.baseline}: {_cell(found.baseline_top1, 2)} %; at most {found.max_drop:g} points below it:")
    for m in found.models:
        what = "accepted" if m.accepted else for_command_line(m.reason)
        say(f"  {m.name}: {m.params:,} parameters, {_cell(m.top1, 2)} %: {what}")
    say(f"the smallest accepted: {found.pick or 'none'}")


_HEAD = ("model", "fp32 %", "int8 %", "int8 ms", "int8 kB", "fronts")
_MORE = ("model", "params", "M MACs", "rung", "epochs", "val %", "s/epoch", "fp32 ms")
_CLASSES = ("model", "fp32 precision %", "recall %", "int8 precision %", "recall %")


def _row(r: Row) -> list[str]:
    return [
        r.name,
        _cell(r.test_top1_fp32, 2),
        _cell(r.test_top1_int8, 2),
        _cell(r.latency_int8_ms, 3),
        _cell(r.size_int8_bytes and r.size_int8_bytes / 1e3),
        "failed" if r.error and not r.pareto else r.pareto or ("at chance" if r.learnt_nothing else ""),
    ]


def _more(r: Row) -> list[str]:
    return [
        r.name,
        f"{r.params:,}",
        f"{r.macs / 1e6:.1f}",
        _cell(r.rung),
        _cell(r.epochs),
        _cell(r.val_top1, 2),
        _cell(r.epoch_s, 1),
        _cell(r.latency_fp32_ms, 3),
    ]


def _classes(r: Row) -> list[str]:
    shares = (r.precision_fp32, r.recall_fp32, r.precision_int8, r.recall_int8)
    return [r.name, *(_cell(share, 2) for share in shares)]


def _cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
