"""``qdeploy export``"""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.output import emit_json, extra_needed, note


@click.command("export")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--int8", is_flag=True, help="Also make an INT8 model, calibrated on training images.")
@click.option("--target", default="x86", help="INT8 encoding: x86 or tensorrt.")
@click.option("--calibration-images", type=int, default=256, help="Training images that set the ranges.")
@click.option("--max-drop", type=float, default=1.0, help="Points of validation top-1 that INT8 may cost.")
@click.option("--out", type=click.Path(path_type=Path), help="The export's folder. Default: ./exports/<run>.")
@click.option("--json", is_flag=True, help="Print the report as one JSON document.")
def export_command(
    run: Path | None,
    int8: bool,
    target: str,
    calibration_images: int,
    max_drop: float,
    out: Path | None,
    json: bool,
) -> None:
    """Export a run to ONNX and INT8, checked after every step.

    RUN is a run's folder. Default: the newest below ./runs.
    """
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
