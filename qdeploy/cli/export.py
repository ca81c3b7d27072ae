"""``qdeploy export``, and what ``qdeploy quantize`` shares with it"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdeploy.cli.output import Bar, emit_json, extra_needed
from qdeploy.core.errors import for_command_line

if TYPE_CHECKING:
    from qdeploy.export.verdict import ExportReport

Command = Callable[..., int]
Ticks = Callable[[str], Callable[[int, int], None]]


def int8_options(command: Command) -> Command:
    """Add what export and quantize take: how INT8 is made and judged."""
    options = (
        click.option(
            "--target",
            default="auto",
            help="INT8 encodings, between commas: x86, x86-avx2, arm, tensorrt, openvino, portable. "
            "Default: this CPU's.",
        ),
        click.option(
            "--calibration",
            default="auto",
            help="How values become ranges: minmax, percentile, entropy, mse, mixed. Default: the best of all.",
        ),
        click.option("--calibration-images", type=int, default=256, help="Training images that set the ranges."),
        click.option(
            "--float-layers", help="Leave these parts in float, between commas, instead of searching; none: nothing."
        ),
        click.option(
            "--like", type=click.Path(path_type=Path), help="Leave in float what this INT8 file of the same model does."
        ),
        click.option(
            "--search-seconds", type=float, default=120.0, help="Time for that search; then the best so far is taken."
        ),
        click.option("--random-calibration", is_flag=True, help="Calibrate on noise, only to try a graph."),
        click.option("--max-drop", type=float, default=1.0, help="Points of validation top-1 that INT8 may cost."),
        click.option("--max-drop-relative", type=float, help="The same in percent of the float model's top-1."),
        click.option("--allow-drop", is_flag=True, help="Keep INT8 even if it costs more."),
        click.option("--allow-slower", is_flag=True, help="Keep INT8 even if it is not faster on this machine."),
        click.option("--fp16", is_flag=True, help="Also make an fp16 model, for GPUs."),
        click.option("--tensorrt", is_flag=True, help="Also build TensorRT engines, for the GPU of this machine."),
        click.option("--tensorrt-rtx", is_flag=True, help="Also build TensorRT-RTX engines; needs no GPU."),
        click.option("--kit", type=click.Choice(["c"]), help="Also write a C program for devices without Python."),
        click.option("--out", type=click.Path(path_type=Path), help="The export's folder. Default: ./exports/<name>."),
        click.option("--json", is_flag=True, help="Print the report as one JSON document."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("export")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--int8", is_flag=True, help="Also make an INT8 model, calibrated on training images.")
@click.option("--qat-epochs", type=int, default=0, help="Fine-tune for INT8, if it misses its budget without.")
@int8_options
def export_command(run: Path | None, out: Path | None, json: bool, **fields: Any) -> int:
    """Export a run to ONNX and INT8, checked after every step.

    RUN is a run's folder. Default: the newest below ./runs. The exit code is 1 if INT8 is rejected.
    """
    with extra_needed():
        from qdeploy.export import ExportConfig, export
    from qdeploy.core.run_folder import newest_run

    config = ExportConfig(**searched(fields))
    run = run or newest_run()
    with Bar("exporting") as bar:
        bar.line(f"exporting {run}")
        report = export(run, config, out, bar.line, ticks(bar))
    return show(report, json, config.kit)


def searched(fields: dict[str, Any]) -> dict[str, Any]:
    """Turn the options on the choice of float layers into the fields of an ``ExportConfig``."""
    from qdeploy.export import SearchConfig

    names = fields["float_layers"]
    layers = None if names is None else tuple(name.strip() for name in names.split(",") if name.strip())
    search = SearchConfig(seconds=fields.pop("search_seconds"))
    return {**fields, "float_layers": layers, "search": search}


def ticks(bar: Bar) -> Ticks:
    """Show the progress of steps by their names."""
    return lambda name: lambda done, total: bar.update(done, total, name)


def show(report: ExportReport, json: bool, kit: str | None) -> int:
    """Print a report, and give the exit code: 1 if INT8 was rejected."""
    if json:
        emit_json(report.to_dict())
        return int(not report.accepted)
    for a in report.artifacts:
        print(
            f"{a.path}: top-1 {a.accuracy['top1']:.2f} % on {a.accuracy['n']} test images, "
            f"{a.size_bytes / 1e3:.0f} kB, p50 {a.latency_ms['p50']:.3f} ms"
        )
    for e in report.engines:
        checked = "run and compared" if e.ran else "not run here"
        print(f"{e.path}: {e.size_bytes / 1e3:.0f} kB, from {e.source}, {checked}")
    if kit:
        print(f"{report.out}/kit-c: a C program with these models; its README.md says how to build it")
    print(for_command_line(report.verdict))
    print(f"report: {report.out}/report.html; next: qdeploy predict IMAGE, qdeploy bench")
    return int(not report.accepted)
