"""The configuration of an export."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from qdeploy.core.errors import InputError, near_miss
from qdeploy.core.machine import MOST_THREADS, native_target
from qdeploy.export.confidence import require_coverage
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.float_choice import SearchConfig
from qdeploy.export.int8.ranges import METHODS
from qdeploy.export.kits.table import kit_names
from qdeploy.export.libraries import library_compilers
from qdeploy.export.verdict import Policy


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What an export makes, and what it may cost in accuracy and time."""

    int8: bool = False
    target: str = "auto"
    """Encodings of the INT8 files: keys of ``ENCODINGS`` between commas; auto is what this machine runs best."""
    calibration_images: int = 256
    """Images of the training split whose values set the ranges."""
    random_calibration: bool = False
    """Set the ranges with noise instead: only to try a graph. The card says so, and ``qdeploy verify`` refuses it."""
    calibration: str = "auto"
    """Method of the ranges: minmax, percentile, entropy, mse, mixed (the best for each tensor); auto tries all."""
    max_drop: float = 1.0
    """Points of validation top-1 that INT8 may cost."""
    max_drop_relative: float | None = None
    """Loss that INT8 may cause, in percent of the float model's top-1; if given, it replaces ``max_drop``."""
    strict: bool = False
    """Reject an INT8 file, too, whose loss too few images show to be within the budget."""
    allow_drop: bool = False
    """Keep an INT8 file that costs more."""
    allow_slower: bool = False
    """Keep an INT8 file that is not faster than fp32 here."""
    qat_epochs: int = 0
    """Passes over the training images of a quantization-aware fine-tune, made only if INT8 misses its budget."""
    fp16: bool = False
    """Also make an fp16 model, for GPUs."""
    tensorrt: bool = False
    """Also build TensorRT engines, for the GPU of this machine."""
    tensorrt_rtx: bool = False
    """Also build TensorRT-RTX engines, which needs no GPU."""
    kit: str | None = None
    """Folders for other programs to write, too: keys of ``KITS`` between commas."""
    native_library: str | None = None
    """Also compile the native engine's libraries and put them beside the model files; for which CPUs, as
    ``library_compilers`` takes them."""
    float_layers: tuple[str, ...] | None = None
    """Leave these in float instead of searching: parts as the report names them, modules, nodes; ``none``: nothing."""
    like: Path | None = None
    """Leave in float what this INT8 file of the same model does, instead of searching."""
    coverage: float | None = None
    """Share of the validation images, in (0, 1), that keep their label; what has a lower score than these is unknown.
    None: every image gets a label."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How hard the layers that stay in float are searched for."""
    threads: int | None = None
    """CPU threads that compute; by default what OMP_NUM_THREADS asks for, else all cores. Speed is measured with those
    of a user of the file all the same."""
    choice_runs: int | None = None
    """Former name of ``search.runs``, which it sets: scripts that were written for it still run."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The encodings to make."""
        names = [native_target() if t.strip() == "auto" else t.strip() for t in self.target.split(",")]
        if self.builders:
            names.append("tensorrt")
        return tuple(dict.fromkeys(names))

    @property
    def kits(self) -> tuple[str, ...]:
        """Names of the kits to write."""
        return () if self.kit is None else kit_names(self.kit)

    @property
    def policy(self) -> Policy:
        """What the verdict on an INT8 file allows."""
        return Policy(strict=self.strict, allow_drop=self.allow_drop, allow_slower=self.allow_slower)

    @property
    def builders(self) -> tuple[str, ...]:
        """The packages that build engines."""
        return tuple(name for name in ("tensorrt", "tensorrt_rtx") if getattr(self, name))

    def __post_init__(self) -> None:
        if self.choice_runs is not None:
            object.__setattr__(self, "search", replace(self.search, runs=self.choice_runs))
        for target in self.targets:
            encoding_for(target)
        require_coverage(self.coverage)
        if self.kit is not None:
            kit_names(self.kit)
        if self.native_library is not None:
            library_compilers(self.native_library)
        known = (*METHODS, "mixed", "auto")
        if self.calibration not in known:
            raise InputError(
                f"there is no calibration '{self.calibration}'{near_miss(self.calibration, known)}; known: "
                f"{', '.join(known)}"
            )
        if self.float_layers == ():
            raise InputError("`float_layers` names nothing", fix="give parts, or: none")
        if self.float_layers is not None and self.like is not None:
            raise InputError("`float_layers` and `like` both say what stays in float", fix="give one of them")
        if not 0 <= self.qat_epochs <= 1000:
            raise InputError("`qat_epochs` must be between 0 and 1000", found=self.qat_epochs)
        relative = self.max_drop_relative
        if relative is not None and not 0 <= relative <= 100:
            raise InputError("`max_drop_relative` must be between 0 and 100 percent", found=relative)
        if not 1 <= self.calibration_images <= 100_000:
            raise InputError("`calibration_images` must be between 1 and 100000", found=self.calibration_images)
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"`threads` must be between 1 and {MOST_THREADS}", found=self.threads)
        if not 0 <= self.max_drop <= 100:
            raise InputError("`max_drop` must be between 0 and 100 points", found=self.max_drop)
