"""The card, what a model file says about itself: its parts, and their form as JSON.

Schema 2 groups what schema 1 kept in one table (``lineage``) and stores the goldens' logits exactly. Cards of schema 1
are read; new ones are never written.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from qdeploy.core.confidence import Confidence, Cut
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.reference import Reference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 2
LARGEST_GOLDENS = 64 << 20
"""Bytes of the pixels of all goldens: a card may say anything, and a few kB of it can unpack to gigabytes."""
Fields = Mapping[str, Any]


ONNX_FAMILY, MODULE_FAMILY = "onnx", "module"
"""Families of models that no run made: of an ONNX file from elsewhere, and of a module of a user's program."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Which model it is."""

    name: str
    """Name in the registry, or the user's name for it."""
    family: str
    """Key of the registry's families; ``onnx`` and ``module`` are models from elsewhere."""
    params: int
    macs: int
    """Multiply-accumulates of one image; 0 if they were not counted."""
    input_size: int
    """Pixels of an image's side."""
    num_classes: int
    config: dict[str, Any] = field(default_factory=dict)
    """Everything that rebuilds the model."""

    @property
    def macs_shown(self) -> str:
        """The multiply-accumulates in words."""
        if not self.macs:
            return "MACs not counted"
        return f"{self.macs / 1e6:.1f} M MACs" if self.macs >= 1e5 else f"{self.macs:,} MACs"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Fields) -> ModelInfo:
        """Rebuild from ``to_dict``.

        Raises:
            ValueError: If a field is missing or of another type.
        """
        kinds = {"name": str, "family": str, "params": int, "macs": int, "input_size": int, "num_classes": int}
        return cls(**_typed("model", fields, {**kinds, "config": dict}))


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Which images a model was trained and measured on."""

    name: str
    sha256: str
    """Hash of all images, labels and splits."""
    images: dict[str, int]
    """Number of images of each split."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from."""

    training: dict[str, Any]
    """Configuration of the training; empty for a model from elsewhere."""
    created: str
    """When the training began, or when the file from elsewhere was exported; ISO 8601."""
    dataset: DatasetInfo
    git: dict[str, str | bool] | None
    """Commit of the working folder then, and whether it had changes; None outside a repository."""
    versions: dict[str, str]
    """Versions of Python and the packages that made the file."""
    parent_sha256: str
    """SHA-256 of what the file was made from: a run's weights, or another model file."""

    @classmethod
    def from_dict(cls, fields: Fields) -> Origin:
        """Rebuild from JSON.

        Raises:
            ValueError: If a field is missing or of another type.
        """
        kinds = {"training": dict, "created": str, "versions": dict, "parent_sha256": str}
        git = fields.get("git")
        if git is not None:
            git = _typed("git", git, {"commit": str, "dirty": bool})
        data = _typed("dataset", fields["dataset"], {"name": str, "sha256": str, "images": dict})
        return cls(**_typed("origin", fields, kinds), git=git, dataset=DatasetInfo(**data))


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """What set the ranges of an INT8 file."""

    method: str
    images: tuple[str, ...]
    """Hashes of the calibration images."""
    seed: int
    """Seed with which the calibration images were chosen."""
    random: bool = False
    """Whether the images are noise: such a file is only good for trying."""

    @classmethod
    def from_dict(cls, fields: Fields) -> CalibrationRecord:
        """Rebuild from JSON.

        Raises:
            ValueError: If a field is missing or of another type.
        """
        values = _typed("calibration", fields, {"method": str, "images": list, "seed": int, "random": bool})
        return cls(**{**values, "images": _texts("calibration images", values["images"])})


@dataclass(frozen=True, kw_only=True)
class FloatLayersRecord:
    """How it was decided which layers an INT8 file leaves in float."""

    by: str
    """``search``, ``user`` (names were given), ``file`` (those of another file)."""
    layers: tuple[str, ...]
    """Names of the parts."""
    like_sha256: str | None = None
    """SHA-256 of the other file, if ``by`` is ``file``."""

    @classmethod
    def from_dict(cls, fields: Fields) -> FloatLayersRecord:
        """Rebuild from JSON.

        Raises:
            ValueError: If a field is missing or of another type.
        """
        values = _typed("float_choice", fields, {"by": str, "layers": list})
        like = fields.get("like_sha256")
        return cls(by=values["by"], layers=_texts("float layers", values["layers"]), like_sha256=like and str(like))


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy of a file on images that took no part in making it."""

    split: str
    top1: float
    """Top-1 accuracy in percent."""
    top5: float
    """Top-5 accuracy in percent."""
    n: int
    """Number of images measured."""
    ci95: tuple[float, float]
    """95 % Wilson interval of ``top1``, in percent."""
    against_fp32: PairedDifference | None = None
    """Top-1 minus that of the fp32 file on the same images; None for the fp32 file itself, and in early files."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "ci95": list(self.ci95)}

    @classmethod
    def from_dict(cls, fields: Fields) -> Accuracy:
        """Rebuild from ``to_dict``.

        Raises:
            ValueError: If a field is missing or of another type.
        """
        values = _typed("accuracy", fields, {"split": str, "top1": float, "top5": float, "n": int, "ci95": list})
        low, high = values["ci95"]
        given = fields.get("against_fp32")
        kinds = {"points": float, "margin95": float, "n": int}
        difference = None if given is None else PairedDifference(**_typed("against_fp32", given, kinds))
        return cls(**{**values, "ci95": (float(low), float(high))}, against_fp32=difference)


@dataclass(frozen=True, kw_only=True)
class Goldens:
    """A few inputs and the logits that the file gave for them when it was made."""

    pixels: bytes = field(repr=False)
    """Pixels of all images one after the other, uint8 RGB."""
    shape: tuple[int, ...]
    """``(N, S, S, 3)``"""
    rows: tuple[tuple[float, ...], ...] = field(repr=False)
    """The K logits of each image: exactly the float32 values that the file gave."""
    min_sqnr_db: float
    """Least agreement, in decibels, that a sound runtime reaches."""

    @classmethod
    def of(cls, images_NSSC: NDArray[np.uint8], logits_NK: NDArray[np.float32], min_sqnr_db: float) -> Goldens:
        """Make them from arrays."""
        rows = tuple(map(tuple, logits_NK.tolist()))
        return cls(pixels=images_NSSC.tobytes(), shape=images_NSSC.shape, rows=rows, min_sqnr_db=min_sqnr_db)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """The images, ``[N, S, S, 3]``."""
        import numpy as np

        return np.frombuffer(self.pixels, np.uint8).reshape(self.shape)

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """The logits, ``[N, K]``."""
        import numpy as np

        return np.asarray(self.rows, np.float32)

    def sqnr_db(self, rows: Sequence[Sequence[float]]) -> float:
        """Return the signal-to-quantization-noise ratio of a runtime's logits, in decibels; infinite if equal.

        Logits of another number are no agreement at all: minus infinity.
        """
        if [len(row) for row in rows] != [len(row) for row in self.rows]:
            return -math.inf
        signal = sum(a * a for row in self.rows for a in row)
        pairs = zip(chain.from_iterable(self.rows), chain.from_iterable(rows), strict=True)
        noise = sum((a - b) * (a - b) for a, b in pairs)  # ** raises where the square is too large
        return math.inf if noise == 0.0 else 10.0 * (math.log10(max(signal, 1e-30)) - math.log10(noise))

    def same_classes(self, rows: Sequence[Sequence[float]]) -> bool:
        """Tell whether a runtime's largest logits are of the same classes."""
        return all(a.index(max(a)) == b.index(max(b)) for a, b in zip(self.rows, rows, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: the images compressed, the logits as float32, little endian."""
        logits = list(chain.from_iterable(self.rows))
        return {
            "shape": list(self.shape),
            "images_zlib_base64": base64.b64encode(zlib.compress(self.pixels, 9)).decode(),
            "logits_float32_base64": base64.b64encode(struct.pack(f"<{len(logits)}f", *logits)).decode(),
            "min_sqnr_db": self.min_sqnr_db,
        }

    @classmethod
    def from_dict(cls, fields: Fields) -> Goldens:
        """Rebuild from ``to_dict``, or from goldens of schema 1, whose ``logits`` are rounded to six decimals.

        Raises:
            ValueError: If a field is missing or of another type.
        """
        shape = tuple(fields["shape"])
        size = math.prod(n for n in shape if type(n) is int)
        if not 0 <= size <= LARGEST_GOLDENS:
            raise ValueError(f"its goldens have {size} bytes, at most {LARGEST_GOLDENS} are read")
        if "logits" in fields:
            rows = tuple(tuple(float(v) for v in row) for row in fields["logits"])
        else:
            data = base64.b64decode(fields["logits_float32_base64"], validate=True)
            values = struct.unpack(f"<{len(data) // 4}f", data)
            width = len(values) // max(1, shape[0])
            rows = tuple(values[i : i + width] for i in range(0, len(values), max(1, width)))
        return cls(
            pixels=zlib.decompressobj().decompress(base64.b64decode(fields["images_zlib_base64"]), size + 1),
            shape=shape,
            rows=rows,
            min_sqnr_db=float(fields["min_sqnr_db"]),
        )


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model file says about itself."""

    name: str
    """Name of the export, e.g. ``nano-fashion-mnist``."""
    model: ModelInfo
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    precision: str
    """fp32, fp16 or int8."""
    target: str
    """The encoding: float, or what INT8 was made for, x86 say."""
    float_layers: tuple[str, ...]
    """Layers left in float by an INT8 file."""
    origin: Origin
    calibration: CalibrationRecord | None = None
    """Calibration of an INT8 file; None for the others."""
    float_choice: FloatLayersRecord | None = None
    """How the float layers of an INT8 file were chosen; None in other files and in early versions."""
    qat_epochs: int = 0
    """Passes of the fine-tune that an INT8 file's weights come from; 0 if there was none."""
    accuracy: Accuracy | None
    """None before it is measured."""
    goldens: Goldens
    confidence: Confidence | None = None
    """How far its probabilities can be trusted; None in files of earlier versions, whose temperature is 1."""
    task: str = "image-classification"

    @property
    def temperature(self) -> float:
        """What the graph divides the logits by before their softmax."""
        return 1.0 if self.confidence is None else self.confidence.temperature

    @property
    def cut(self) -> Cut | None:
        """Which images are unknown; None if the file answers all."""
        threshold = None if self.confidence is None else self.confidence.threshold
        return None if threshold is None else Cut(threshold, self.temperature)

    @property
    def reference(self) -> Reference | None:
        """The file's answers to the validation images; None if the card does not have them."""
        return None if self.confidence is None else self.confidence.reference

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        calibration, choice = self.calibration, self.float_choice
        return {
            "schema": SCHEMA,
            "name": self.name,
            "task": self.task,
            "model": self.model.to_dict(),
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.to_dict(),
            "precision": self.precision,
            "target": self.target,
            "float_layers": list(self.float_layers),
            "origin": asdict(self.origin),
            "calibration": {**asdict(calibration), "images": list(calibration.images)} if calibration else None,
            "float_choice": {**asdict(choice), "layers": list(choice.layers)} if choice else None,
            "qat_epochs": self.qat_epochs,
            "accuracy": self.accuracy.to_dict() if self.accuracy else None,
            "goldens": self.goldens.to_dict(),
            "confidence": self.confidence.to_dict() if self.confidence else None,
        }

    @classmethod
    def from_dict(cls, fields: Fields) -> Card:
        """Rebuild from ``to_dict``, or from a card of schema 1.

        Raises:
            ArtifactError: If the schema is unknown, a field is missing or wrong, or parts do not belong together.
        """
        try:
            if fields["schema"] not in (1, SCHEMA):
                raise ArtifactError(
                    f"has a card of schema {fields['schema']}; this qdeploy reads schema {SCHEMA} and 1"
                )
            card = cls._parsed(_from_schema_1(fields) if fields["schema"] == 1 else fields)
            card._check()
        except ArtifactError:
            raise
        except (
            *(LookupError, TypeError, ValueError, AttributeError, OverflowError),
            *(zlib.error, struct.error, InputError),
        ) as error:
            raise ArtifactError(f"has an unusable card: {type(error).__name__} {error}") from error
        return card

    @classmethod
    def _parsed(cls, fields: Fields) -> Card:
        calibration, choice, accuracy = (fields[k] for k in ("calibration", "float_choice", "accuracy"))
        confidence = fields.get("confidence")  # cards of earlier versions have none
        kinds = {"name": str, "task": str, "precision": str, "target": str, "qat_epochs": int}
        return cls(
            **_typed("card", fields, kinds),
            model=ModelInfo.from_dict(fields["model"]),
            labels=_texts("labels", fields["labels"]),
            preprocessing=Preprocessing.from_dict(fields["preprocessing"]),
            float_layers=_texts("float_layers", fields["float_layers"]),
            origin=Origin.from_dict(fields["origin"]),
            calibration=None if calibration is None else CalibrationRecord.from_dict(calibration),
            float_choice=None if choice is None else FloatLayersRecord.from_dict(choice),
            accuracy=None if accuracy is None else Accuracy.from_dict(accuracy),
            goldens=Goldens.from_dict(fields["goldens"]),
            confidence=None if confidence is None else Confidence.from_dict(confidence),
        )

    def _check(self) -> None:
        """Check what other parts rely on: the checksum proves that a card is unchanged, not that it is right."""
        goldens, size = self.goldens, self.preprocessing.size
        count = len(goldens.rows)
        if (
            goldens.shape != (count, size, size, 3)
            or not all(type(n) is int for n in goldens.shape)
            or len(goldens.pixels) != math.prod(goldens.shape)
            or {len(row) for row in goldens.rows} != {len(self.labels)}
        ):
            raise ValueError("labels, preprocessing and goldens do not belong together")
        reference = self.reference
        if reference is not None and len(reference.classes) != len(self.labels):
            raise ValueError("its answers to the validation images are of other classes than its labels")


def _typed(what: str, fields: Fields, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return the named fields, each of its type; a whole number may stand for a float."""
    values = {}
    for name, kind in kinds.items():
        value = fields[name]
        allowed = (int, float) if kind is float else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{what}: '{name}' must be of type {kind.__name__}, found {type(value).__name__}")
        values[name] = value
    return values


def _texts(what: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{what} must be texts")
    return tuple(values)


def _from_schema_1(fields: Fields) -> Fields:
    """Return the fields of a card of schema 1 as schema 2 has them."""
    lineage, model = fields["lineage"], fields["model"]
    calibration, accuracy = lineage.get("calibration"), fields["accuracy"]
    more = {"family": "", "input_size": fields["preprocessing"]["size"], "num_classes": len(fields["labels"])}
    return {
        **fields,
        "model": {**more, "config": {}, **model},
        "origin": {**lineage, "created": lineage["trained"]},
        "calibration": None if calibration is None else {"random": False, **calibration},
        "float_choice": lineage.get("float_choice"),
        "qat_epochs": lineage.get("qat_epochs", 0),
        "accuracy": accuracy or None,
    }
