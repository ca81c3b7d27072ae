"""``qdeploy export``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.output import emit_json, extra_needed, note


def export_command(
    run: Annotated[Path | None, typer.Argument(help="A run's folder. Default: the newest below ./runs.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also make an INT8 model, calibrated on training images.")
    ] = False,
    target: Annotated[str, typer.Option(help="INT8 encoding: x86 or tensorrt.")] = "x86",
    calibration_images: Annotated[int, typer.Option(help="Training images that set the ranges.")] = 256,
    max_drop: Annotated[float, typer.Option(help="Points of validation top-1 that INT8 may cost.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="The export's folder. Default: ./exports/<run>.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
) -> None:
    """Export a run to ONNX, checked after every step; with --int8 also to a quantized model."""
    with extra_needed():
        from qdeploy.export.made import ExportConfig
        from qdeploy.export.pipeline import export
    from qdeploy.core.run_folder import newest_run

    config = ExportConfig(int8=int8, target=target, calibration_images=calibration_images, max_drop=max_drop)
    run = run or newest_run()
    note(f"exporting {run}")
    report = export(run, config, out, note)
    if json:
        emit_json(report.to_dict())
        return
    for a in report.artifacts:
        print(
            f"{a.path}: top-1 {a.accuracy['top1']:.2f} % on {a.accuracy['n']} test images, "
            f"{a.size_bytes / 1e3:.0f} kB, p50 {a.latency_ms['p50']:.3f} ms"
        )
    print(report.verdict)
    print(f"report: {report.out}/report.html; next: qdeploy predict IMAGE, qdeploy bench")
