"""The INT8 options that ``qdeploy export`` and ``qdeploy quantize`` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli.options import WHERE
from qdeploy.export.int8.encodings import ENCODINGS
from qdeploy.export.kits.table import KITS

if TYPE_CHECKING:
    from qdeploy.export import ExportConfig

CALIBRATION = "Calibration"
FLOAT_SEARCH = "Float search"
BUDGET = "Budget of INT8"
FILES = "Files"


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """The options as typed; ``ExportConfig`` checks their values."""

    target: Annotated[
        str,
        typer.Option(
            help=f"INT8 encodings, between commas: {', '.join(ENCODINGS)}. Default: this CPU's.",
            show_default=False,
        ),
    ] = "auto"
    calibration: Annotated[
        str,
        typer.Option(
            help="How values become ranges: minmax, percentile, entropy, mse, mixed. Default: the best of all.",
            show_default=False,
            rich_help_panel=CALIBRATION,
        ),
    ] = "auto"
    calibration_images: Annotated[
        int, typer.Option(help="Training images that set the ranges.", rich_help_panel=CALIBRATION)
    ] = 256
    random_calibration: Annotated[
        bool,
        typer.Option(
            "--random-calibration", help="Calibrate on noise, only to try a graph.", rich_help_panel=CALIBRATION
        ),
    ] = False
    float_layers: Annotated[
        str | None,
        typer.Option(
            help="Leave these parts in float, between commas, instead of searching; none: nothing.",
            rich_help_panel=FLOAT_SEARCH,
        ),
    ] = None
    like: Annotated[
        Path | None,
        typer.Option(help="Leave in float what this INT8 file of the same model does.", rich_help_panel=FLOAT_SEARCH),
    ] = None
    search_seconds: Annotated[
        float,
        typer.Option(help="Time for the float search; then the best so far is taken.", rich_help_panel=FLOAT_SEARCH),
    ] = 120.0
    max_drop: Annotated[
        float, typer.Option(help="Points of validation top-1 that INT8 may cost.", rich_help_panel=BUDGET)
    ] = 1.0
    max_drop_relative: Annotated[
        float | None,
        typer.Option(help="The same in percent of the float model's top-1.", rich_help_panel=BUDGET),
    ] = None
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Reject INT8, too, if too few images show what it costs.", rich_help_panel=BUDGET
        ),
    ] = False
    allow_drop: Annotated[
        bool, typer.Option("--allow-drop", help="Keep INT8 even if it costs more.", rich_help_panel=BUDGET)
    ] = False
    allow_slower: Annotated[
        bool,
        typer.Option(
            "--allow-slower", help="Keep INT8 even if it is not faster on this machine.", rich_help_panel=BUDGET
        ),
    ] = False
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Share of validation images that keep their label; others are unknown. Default: all are answered.",
            show_default=False,
        ),
    ] = None
    fp16: Annotated[bool, typer.Option("--fp16", help="Also make an fp16 model, for GPUs.", rich_help_panel=FILES)] = (
        False
    )
    tensorrt: Annotated[
        bool,
        typer.Option(
            "--tensorrt", help="Also build TensorRT engine files, for the GPU of this machine.", rich_help_panel=FILES
        ),
    ] = False
    tensorrt_rtx: Annotated[
        bool,
        typer.Option(
            "--tensorrt-rtx", help="Also build TensorRT-RTX engine files; needs no GPU.", rich_help_panel=FILES
        ),
    ] = False
    kit: Annotated[
        str | None,
        typer.Option(help=f"Also write kits, between commas: {', '.join(KITS)}.", rich_help_panel=FILES),
    ] = None
    native_library: Annotated[
        str | None,
        typer.Option(
            metavar="CPUS",
            help="Also compile libraries for --engine native on devices without a compiler, between commas: here, "
            "aarch64, armhf, riscv64, x86_64, or a compiler's command.",
            show_default=False,
            rich_help_panel=FILES,
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads that compute. Default: OMP_NUM_THREADS, else all cores.", rich_help_panel=WHERE),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(help="The export's folder. Default: ./exports/<name>.", rich_help_panel=FILES),
    ] = None

    def config(self, *, int8: bool, qat_epochs: int = 0) -> ExportConfig:
        """Return the configuration of an export."""
        from qdeploy.export import ExportConfig, SearchConfig

        names = self.float_layers
        others = ("float_layers", "search_seconds", "out")
        same: dict[str, Any] = {name: value for name, value in vars(self).items() if name not in others}
        return ExportConfig(
            **same,
            float_layers=None if names is None else tuple(n.strip() for n in names.split(",") if n.strip()),
            search=SearchConfig(seconds=self.search_seconds),
            int8=int8,
            qat_epochs=qat_epochs,
        )
