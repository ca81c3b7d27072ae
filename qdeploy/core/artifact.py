"""One model file: its card, its checksum and its bytes, read without any machine-learning library.

The card (JSON) and the checksum are two entries of the ONNX file's ``metadata_props``. The checksum is the
SHA-256 of the whole file with the checksum's own 64 digits set to ``0``: one file is complete by itself, and
damage is found before a runtime sees it.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.core.engine_file import EngineHeader, is_engine, unpack
from qdeploy.core.errors import ArtifactError, InputError, NoCardError
from qdeploy.core.files import newest, sha256_of
from qdeploy.core.onnx_bytes import Entry, has_external_data, metadata_entries
from qdeploy.core.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
CARD_KEY = "qdeploy"
CHECKSUM_KEY = "qdeploy_sha256"
BLANK = "0" * 64
EXPORTS = Path("exports")
ONNX_FILES = "model*.onnx"
ENGINE_FILES = "model*.engine"
SHIPPED = Path(__file__).parents[1] / "shipped"
"""The small pretrained model inside the package: an export's folder."""


@dataclass(frozen=True, kw_only=True)
class Goldens:
    """A few inputs and the logits that the file gave for them when it was made."""

    pixels: bytes = field(repr=False)
    """Of all images, one after the other."""
    shape: tuple[int, ...]
    """``(N, S, S, 3)``"""
    rows: tuple[tuple[float, ...], ...] = field(repr=False)
    """The K logits of each image."""
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
        """Give the signal-to-quantization-noise ratio of a runtime's logits, in decibels; infinite if equal.

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
        """Give JSON-ready values; the images are compressed."""
        return {
            "shape": list(self.shape),
            "images_zlib_base64": base64.b64encode(zlib.compress(self.pixels, 9)).decode(),
            "logits": [[round(v, 6) for v in row] for row in self.rows],
            "min_sqnr_db": self.min_sqnr_db,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Goldens:
        """Rebuild from ``to_dict``."""
        return cls(
            pixels=zlib.decompress(base64.b64decode(fields["images_zlib_base64"])),
            shape=tuple(fields["shape"]),
            rows=tuple(tuple(float(v) for v in row) for row in fields["logits"]),
            min_sqnr_db=float(fields["min_sqnr_db"]),
        )


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model file says about itself."""

    name: str
    """Name of the export, e.g. ``nano-fashion-mnist``."""
    model: dict[str, Any]
    """Registry name, family, params, macs, input_size and the full configuration."""
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    precision: str
    """fp32, fp16 or int8."""
    target: str
    """The encoding: float, or what INT8 was made for, x86 say."""
    float_layers: tuple[str, ...]
    """Layers left in float by an INT8 file."""
    lineage: dict[str, Any]
    """Training configuration, seed, data set, git commit, versions, calibration images, parent's SHA-256."""
    accuracy: dict[str, Any]
    """split, top1 in percent, n, ci95."""
    goldens: Goldens
    task: str = "image-classification"
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-ready values."""
        return {
            "schema": self.schema,
            "name": self.name,
            "task": self.task,
            "model": self.model,
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.to_dict(),
            "precision": self.precision,
            "target": self.target,
            "float_layers": list(self.float_layers),
            "lineage": self.lineage,
            "accuracy": self.accuracy,
            "goldens": self.goldens.to_dict(),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Card:
        """Rebuild from ``to_dict``.

        Raises:
            ArtifactError: If the schema is unknown or a field is missing.
        """
        try:
            if fields["schema"] != SCHEMA:
                raise ArtifactError(f"has a card of schema {fields['schema']}; this qdeploy reads schema {SCHEMA}")
            plain = {k: fields[k] for k in ("name", "task", "model", "precision", "target", "lineage", "accuracy")}
            card = cls(
                **plain,
                labels=tuple(fields["labels"]),
                preprocessing=Preprocessing.from_dict(fields["preprocessing"]),
                float_layers=tuple(fields["float_layers"]),
                goldens=Goldens.from_dict(fields["goldens"]),
            )
            card._check()
        except ArtifactError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, zlib.error, InputError) as error:
            raise ArtifactError(f"has an unusable card: {type(error).__name__} {error}") from error
        return card

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
        numbers = (self.model["params"], self.model["macs"], goldens.min_sqnr_db)
        if not all(isinstance(n, (int, float)) for n in numbers):
            raise ValueError("params, macs and min_sqnr_db must be numbers")
        for words in (self.model["name"], self.name, self.precision, self.target, *self.labels):
            if not isinstance(words, str):
                raise ValueError("names and labels must be texts")
        for key in ("training", "dataset", "versions"):
            self.lineage[key].keys()


@dataclass(frozen=True)
class Artifact:
    """A model file in memory; its checksum has been verified."""

    path: Path
    data: bytes = field(repr=False)
    card: Card = field(repr=False)
    engine: EngineHeader | None = field(default=None, repr=False)
    """Of an engine file; None for an ONNX file."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file as it is on disk."""
        return sha256_of(self.data)


def read_artifact(path: Path) -> Artifact:
    """Read a model file, ONNX or engine, once, verify its checksum and parse its card.

    Raises:
        ArtifactError: If it is missing, damaged, or not written by qdeploy.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the model file {path} cannot be read: {error.strerror}") from error
    return _engine_artifact(path, data) if is_engine(data) else _onnx_artifact(path, data)


def _engine_artifact(path: Path, data: bytes) -> Artifact:
    try:
        header, _ = unpack(data)
        return Artifact(path, data, Card.from_dict(header.card), header)
    except (ArtifactError, ValueError) as error:
        raise ArtifactError(f"{path} {error}") from error


def _onnx_artifact(path: Path, data: bytes) -> Artifact:
    try:
        entries = {e.key: e for e in metadata_entries(data)}
        external = has_external_data(data)
    except (IndexError, ValueError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not an ONNX file or engine, or is damaged; export it again") from error
    if CARD_KEY not in entries or CHECKSUM_KEY not in entries:
        raise NoCardError(f"{path} has no qdeploy card; give a file written by `qdeploy export`")
    checksum = entries[CHECKSUM_KEY]
    if sha256_of(_blanked(data, checksum)) != checksum.value:
        raise ArtifactError(f"{path} is damaged: its checksum does not match its contents; export or copy it again")
    if external:
        raise ArtifactError(f"{path} keeps weights in another file, which no checksum covers; export it as one file")
    try:
        return Artifact(path, data, Card.from_dict(json.loads(entries[CARD_KEY].value)))
    except (ArtifactError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} {error}") from error


def sealed(data: bytes) -> bytes:
    """Put the checksum into the bytes of a model whose checksum entry is ``BLANK``."""
    entry = next(e for e in metadata_entries(data) if e.key == CHECKSUM_KEY)
    blank = _blanked(data, entry)
    return blank[: entry.start] + sha256_of(blank).encode() + blank[entry.start + len(BLANK) :]


def model_files(path: Path, patterns: Sequence[str] = (ONNX_FILES, ENGINE_FILES)) -> list[Path]:
    """List an export folder's model files, by pattern and name; of a file's path, the file.

    Raises:
        ArtifactError: If the folder holds none.
    """
    files = [f for pattern in patterns for f in sorted(path.glob(pattern))] if path.is_dir() else [path]
    if not files:
        raise ArtifactError(f"{path} holds no model file; give a file or folder that `qdeploy export` wrote")
    return files


def newest_export() -> Path | None:
    """Find the most recent export's folder below ``./exports``, or None."""
    report = newest(EXPORTS, "*/report.json")
    return report.parent if report else None


def _blanked(data: bytes, checksum: Entry) -> bytes:
    return data[: checksum.start] + BLANK.encode() + data[checksum.start + len(BLANK) :]
