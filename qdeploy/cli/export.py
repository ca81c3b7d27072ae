"""``qdeploy export``"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qdeploy.cli.output import Bar, emit_json, extra_needed


@click.command("export")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--int8", is_flag=True, help="Also make an INT8 model, calibrated on training images.")
@click.option(
    "--target",
    default="auto",
    help="INT8 encodings, between commas: x86, x86-avx2, arm, tensorrt, openvino, portable. Default: this CPU's.",
)
@click.option(
    "--calibration",
    default="auto",
    help="How values become ranges: minmax, percentile, entropy, mse, mixed. Default: the best of all.",
)
@click.option("--calibration-images", type=int, default=256, help="Training images that set the ranges.")
@click.option("--max-drop", type=float, default=1.0, help="Points of validation top-1 that INT8 may cost.")
@click.option("--max-drop-relative", type=float, help="The same in percent of the float model's top-1.")
@click.option("--allow-drop", is_flag=True, help="Keep INT8 even if it costs more.")
@click.option("--allow-slower", is_flag=True, help="Keep INT8 even if it is not faster on this machine.")
@click.option("--qat-epochs", type=int, default=0, help="Fine-tune for INT8, if it misses its budget without.")
@click.option("--fp16", is_flag=True, help="Also make an fp16 model, for GPUs.")
@click.option("--tensorrt", is_flag=True, help="Also build TensorRT engines, for the GPU of this machine.")
@click.option("--tensorrt-rtx", is_flag=True, help="Also build TensorRT-RTX engines; needs no GPU.")
@click.option("--out", type=click.Path(path_type=Path), help="The export's folder. Default: ./exports/<run>.")
@click.option("--json", is_flag=True, help="Print the report as one JSON document.")
def export_command(run: Path | None, out: Path | None, json: bool, **fields: Any) -> int:
    """Export a run to ONNX and INT8, checked after every step.

    RUN is a run's folder. Default: the newest below ./runs. The exit code is 1 if INT8 is rejected.
    """
    with extra_needed():
        from qdeploy.export.made import ExportConfig
        from qdeploy.export.pipeline import export
    from qdeploy.core.run_folder import newest_run

    config = ExportConfig(**fields)
    run = run or newest_run()
    with Bar("exporting") as bar:
        bar.line(f"exporting {run}")

        def tick(name: str) -> Callable[[int, int], None]:
            return lambda done, total: bar.update(done, total, name)

        report = export(run, config, out, bar.line, tick)
    if json:
        emit_json(report.to_dict())
        return int(not report.accepted)
    for a in report.artifacts:
        print(
            f"{a.path}: top-1 {a.accuracy['top1']:.2f} % on {a.accuracy['n']} test images, "
            f"{a.size_bytes / 1e3:.0f} kB, p50 {a.latency_ms['p50']:.3f} ms"
        )
    for e in report.engines:
        print(
            f"{e.path}: {e.size_bytes / 1e3:.0f} kB, from {e.source}, {'run and compared' if e.ran else 'not run here'}"
        )
    print(report.verdict)
    print(f"report: {report.out}/report.html; next: qdeploy predict IMAGE, qdeploy bench")
    return int(not report.accepted)
