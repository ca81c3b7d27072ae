"""The engine file: a plan of TensorRT or TensorRT-RTX with all that is known about it, readable without either.

Layout: 8 bytes of magic, the header's length (uint32, little endian), the SHA-256 of everything but itself, the header
(JSON), the plan. A plan alone says neither what it classifies nor where it can run, and is not checked for damage.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import Any

from qdeploy.core.json_text import parse_json

ENGINE_SCHEMA = 1
MAGIC = b"\x93QDPLAN\n"
"""Neither text nor the beginning of an ONNX file; a transfer that rewrites line ends destroys it."""
_FRAME = struct.Struct("<8sI32s")
_DIGEST = slice(12, 44)


@dataclass(frozen=True, kw_only=True)
class EngineHeader:
    """What an engine file says about its plan."""

    builder: str
    """Python package that built the plan and can run it: tensorrt or tensorrt_rtx."""
    builder_version: str
    compute_capabilities: tuple[str, ...]
    """GPUs it runs on, e.g. ``("8.6", "8.9")``."""
    platform: str
    """Systems it runs on, e.g. ``Linux x86_64``."""
    min_batch: int
    opt_batch: int
    """Batch size that the plan is tuned for."""
    max_batch: int
    precision: str
    """fp32, fp16 or int8."""
    source_sha256: str
    """SHA-256 of the ONNX file that the plan was built from."""
    card: dict[str, Any]
    """The card of that file, as JSON."""
    schema: int = ENGINE_SCHEMA

    def describe(self) -> str:
        """Return builder, GPUs and platform in one line."""
        capabilities = ", ".join(self.compute_capabilities)
        return f"{self.builder} {self.builder_version} for GPUs of compute capability {capabilities} on {self.platform}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with the card."""
        return {**asdict(self), "compute_capabilities": list(self.compute_capabilities)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> EngineHeader:
        """Rebuild from ``to_dict``.

        Raises:
            ValueError: If the schema is unknown or a field is missing or wrong.
        """
        if fields.get("schema") != ENGINE_SCHEMA:
            raise ValueError(
                f"has an engine header of schema {fields.get('schema')}; this qdeploy reads {ENGINE_SCHEMA}"
            )
        try:
            header = cls(**{**fields, "compute_capabilities": tuple(fields["compute_capabilities"])})
        except (LookupError, TypeError) as error:
            raise ValueError(f"has an unusable engine header: {type(error).__name__} {error}") from error
        batches = (header.min_batch, header.opt_batch, header.max_batch)
        words = (header.builder, header.builder_version, *header.compute_capabilities, header.platform)
        if not all(isinstance(b, int) for b in batches) or not 1 <= batches[0] <= batches[1] <= batches[2]:
            raise ValueError(f"has an unusable engine header: batches {batches}")
        if not all(isinstance(w, str) for w in words) or not isinstance(header.card, dict):
            raise ValueError(
                "has an unusable engine header: builder, GPUs and platform must be texts, the card a table"
            )
        return header


def is_engine(data: bytes) -> bool:
    """Tell whether these are the bytes of an engine file."""
    return data.startswith(MAGIC)


def pack(header: EngineHeader, plan: bytes) -> bytes:
    """Return the bytes of an engine file; the same header and plan always give the same bytes."""
    text = json.dumps(header.to_dict(), separators=(",", ":")).encode()
    start = _FRAME.pack(MAGIC, len(text), b"")[: _DIGEST.start]
    return b"".join((start, _digest(start, text, plan), text, plan))


def unpack(data: bytes) -> tuple[EngineHeader, bytes]:
    """Check an engine file's bytes and give its header and its plan.

    Raises:
        ValueError: If it is damaged or of an unknown schema; the text goes on after the file's name.
    """
    if len(data) < _FRAME.size:
        raise ValueError("is damaged: it ends within its first bytes; export or copy it again")
    _, length, digest = _FRAME.unpack_from(data)
    if _digest(data[: _DIGEST.start], data[_DIGEST.stop :]) != digest:
        raise ValueError("is damaged: its checksum does not match its contents; export or copy it again")
    end = _FRAME.size + length
    fields = parse_json(data[_FRAME.size : end])
    if not isinstance(fields, dict):
        raise ValueError("has an unusable engine header: it must be a table")
    return EngineHeader.from_dict(fields), data[end:]


def _digest(*parts: bytes) -> bytes:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.digest()
