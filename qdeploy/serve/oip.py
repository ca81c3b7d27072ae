"""Open Inference Protocol, version 2: a request for inference, from bytes to bytes.

With the extensions for binary tensors and classification. Specifications: KServe's open-inference-protocol
(inference_rest.md), Triton's extension_binary_data.md and extension_classification.md.

The input ``image`` is UINT8 ``[N, S, S, 3]``, or BYTES ``[N]`` or ``[N, 1]``: an image file each. In
JSON the element of a BYTES tensor is a file in base64. The outputs ``logits`` and ``probabilities`` are FP32
``[N, K]``.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any, NamedTuple

from qdeploy.core.errors import ImageError
from qdeploy.runtime.classifier import not_finite
from qdeploy.runtime.session import Rows
from qdeploy.serve.body import Header, decompressed, json_object
from qdeploy.serve.lanes import Task
from qdeploy.serve.models import Opened, Served
from qdeploy.serve.refusal import RefusedError, refused_image

INPUT = "image"
OUTPUTS = ("logits", "probabilities")
JSON_LENGTH = b"inference-header-content-length"
DATATYPES = frozenset(
    {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"}
    | {"BF16"}
)
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)


@dataclass(frozen=True, kw_only=True)
class WantedOutput:
    """An output that a client asks for."""

    name: str
    binary: bool
    top: int | None
    """Classes to return as text, by the classification extension; None for the whole tensor."""


class Answer(NamedTuple):
    """A body and its headers."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


JSON_HEADERS = ((b"content-type", b"application/json"),)


class InferTask(Task[Answer]):
    """One request for inference."""

    def __init__(
        self, served: Served, opened: Opened, headers: Header, body: bytes, max_body: int, max_images: int
    ) -> None:
        super().__init__(served, opened)
        self._headers, self._body = headers, body
        self._max_body, self._max_images = max_body, max_images
        self._id: str | None = None
        self._outputs: Sequence[WantedOutput] = ()
        self._files: list[bytes] = []

    def prepare(self) -> bytes:
        """Parse the request and return its pixels.

        Raises:
            RefusedError: If anything of it cannot be.
        """
        body = decompressed(self._body, self._headers, self._max_body)
        text, binary = _split(body, self._headers)
        request = json_object(text)
        identity = request.get("id")
        if identity is not None and not isinstance(identity, str):
            raise RefusedError(400, "bad-request", f"'id' must be a text, found a {type(identity).__name__}")
        self._id = identity
        everything_binary = _parameters(request, "the request").get("binary_data_output", False)
        if not isinstance(everything_binary, bool):
            raise _bad(f"'binary_data_output' must be true or false, found {_short(everything_binary)}")
        self._outputs = _outputs(request.get("outputs"), everything_binary)
        return self._pixels(_only_input(request), binary)

    def finish(self, logits: Rows, probabilities: Rows) -> Answer:
        """Write the answer, as JSON or with binary tensors behind it.

        Raises:
            RefusedError: If a probability is not finite, or a logit that is wanted.
        """
        if not all(isfinite(sum(row)) for row in probabilities):
            raise refused_image(not_finite())
        if self.look:
            for file, *both in zip(self._files, logits, probabilities, strict=True):
                self.look(file, *both)
        rows = {"logits": logits, "probabilities": probabilities}
        described, blobs = [], []
        for wanted in self._outputs:
            entry, data = self._output(wanted, rows[wanted.name])
            if wanted.binary:
                blob = data if isinstance(data, bytes) else _bytes_tensor(data)
                entry["parameters"] = {"binary_data_size": len(blob)}
                blobs.append(blob)
            else:
                entry["data"] = data
            described.append(entry)
        answer = {"model_name": self.served.name, "model_version": str(self.served.version), "outputs": described}
        if self._id is not None:
            answer = {"id": self._id, **answer}
        text = json.dumps(answer).encode()
        if not blobs:
            return Answer(text, JSON_HEADERS)
        headers = ((b"content-type", b"application/octet-stream"), (JSON_LENGTH, str(len(text)).encode()))
        return Answer(b"".join((text, *blobs)), headers)

    def _output(self, wanted: WantedOutput, rows: Rows) -> tuple[dict[str, Any], Any]:
        classes = len(self.opened.card.labels)
        if wanted.top is not None:
            top = min(wanted.top, classes)
            texts = [text for row in rows for text in _classified(row, top, self.opened.card.labels)]
            return {"name": wanted.name, "datatype": "BYTES", "shape": [len(rows), top]}, texts
        flat = list(chain.from_iterable(rows))
        if not isfinite(sum(flat)):  # as logits may be whose probabilities are finite
            raise refused_image(not_finite())
        data = _floats(flat) if wanted.binary else flat
        return {"name": wanted.name, "datatype": "FP32", "shape": [len(rows), classes]}, data

    def _pixels(self, tensor: dict[str, Any], binary: bytes) -> bytes:
        datatype, shape = tensor.get("datatype"), _shape(tensor)
        size = self.opened.card.preprocessing.size
        if datatype == "UINT8":
            if len(shape) != 4 or shape[1:] != [size, size, 3]:
                raise _bad(f"'{INPUT}' must have the shape [N, {size}, {size}, 3], found {_short(shape)}")
        elif datatype == "BYTES":
            if len(shape) != 1 and shape[1:] != [1]:  # Triton's models with batches cannot have [N]
                raise _bad(f"'{INPUT}' of datatype BYTES must have the shape [N] or [N, 1], found {_short(shape)}")
        else:
            known = "must be UINT8 (pixels) or BYTES (image files)"
            other = "" if isinstance(datatype, str) and datatype in DATATYPES else ", which is no datatype"
            raise _bad(f"the datatype of '{INPUT}' {known}, found {_short(datatype)}{other}")
        if not 1 <= shape[0] <= self._max_images:
            raise _bad(f"a request may have 1 to {self._max_images} images, found {_short(shape[0])}")
        self.count = shape[0]
        wanted = self.count * size * size * 3 if datatype == "UINT8" else self.count
        data = _data(tensor, binary)
        if datatype == "UINT8":
            pixels = _pixel_bytes(data, wanted)
            if self.look:
                self._files = list(_as_files(pixels, self.count, size))
            return pixels
        self._files = _files(data, wanted)
        return b"".join([self._decoded(file) for file in self._files])

    def _decoded(self, file: bytes) -> bytes:
        try:
            return self.opened.card.preprocessing.to_bytes(file)
        except ImageError as error:
            raise refused_image(error) from error


def _as_files(pixels: bytes, count: int, size: int) -> Iterator[bytes]:
    """Return pixels as image files (PPM), for whoever keeps some of them."""
    head, each = f"P6\n{size} {size}\n255\n".encode(), len(pixels) // count
    return (head + pixels[i * each : (i + 1) * each] for i in range(count))


def _split(body: bytes, headers: Header) -> tuple[bytes, bytes]:
    """Return the JSON and the binary tensors behind it."""
    given = headers.get(JSON_LENGTH)
    if given is None:
        return body, b""
    length = int(given) if given.isdigit() and len(given) < 12 else -1
    if not 0 <= length <= len(body):
        text = given[:40].decode("latin-1")
        what = f"Inference-Header-Content-Length must be between 0 and the body's {len(body)} bytes, found '{text}'"
        raise RefusedError(400, "bad-binary", what)
    return body[:length], body[length:]


def _only_input(request: dict[str, Any]) -> dict[str, Any]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(i, dict) for i in inputs):
        raise _bad("'inputs' must be a list of tensors")
    names = [i.get("name") for i in inputs]
    if names != [INPUT]:
        raise _bad(f"'inputs' must be one tensor named '{INPUT}', found {_short(names)}")
    return inputs[0]


def _outputs(given: Any, binary: bool) -> list[WantedOutput]:
    if given is None or given == []:
        return [WantedOutput(name=name, binary=binary, top=None) for name in OUTPUTS]
    if not isinstance(given, list) or not all(isinstance(o, dict) for o in given):
        raise _bad("'outputs' must be a list of tensors")
    names = [o.get("name") for o in given]
    if any(name not in OUTPUTS for name in names) or len(set(names)) < len(names):
        raise _bad(f"'outputs' may be {' and '.join(OUTPUTS)}, each once, found {_short(names)}")
    return [_wanted(o, binary) for o in given]


def _wanted(output: dict[str, Any], binary: bool) -> WantedOutput:
    given = _parameters(output, f"output '{output['name']}'")
    own, top = given.get("binary_data", binary), given.get("classification")
    if not isinstance(own, bool):
        raise _bad(f"'binary_data' of '{output['name']}' must be true or false, found {_short(own)}")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise _bad(f"'classification' of '{output['name']}' must be a number of classes, found {_short(top)}")
    return WantedOutput(name=output["name"], binary=own, top=top)


def _parameters(holder: dict[str, Any], what: str) -> dict[str, Any]:
    given = holder.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _bad(f"'parameters' of {what} must be an object, found a {type(given).__name__}")
    return given


def _shape(tensor: dict[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(d) is int and 0 <= d < 2**31 for d in shape):
        raise _bad(f"the shape of '{INPUT}' must be a list of whole numbers, found {_short(shape)}")
    return shape


def _data(tensor: dict[str, Any], binary: bytes) -> Any:
    """Return a tensor's values: bytes if they are binary, else what the JSON holds."""
    size = _parameters(tensor, f"input '{INPUT}'").get("binary_data_size")
    if size is None:
        if binary:
            raise RefusedError(400, "bad-binary", f"{len(binary)} bytes follow the JSON, and no tensor claims them")
        if "data" not in tensor:
            raise _bad(f"'{INPUT}' has neither 'data' nor 'binary_data_size'")
        return tensor["data"]
    if "data" in tensor:
        raise _bad(f"'{INPUT}' has both 'data' and 'binary_data_size'")
    if type(size) is not int or size != len(binary):
        what = f"'binary_data_size' of '{INPUT}' must be the {len(binary)} bytes behind the JSON, found {_short(size)}"
        raise RefusedError(400, "bad-binary", what)
    return binary


def _pixel_bytes(data: Any, wanted: int) -> bytes:
    if isinstance(data, bytes):
        found, pixels = len(data), data
    else:
        values = list(_flat(data))
        found = len(values)
        if set(map(type, values)) - {int}:
            raise _bad(f"'data' of '{INPUT}' must be whole numbers from 0 to 255")
        try:
            pixels = bytes(values)
        except ValueError as error:
            raise _bad(f"'data' of '{INPUT}' must be whole numbers from 0 to 255") from error
    if found != wanted:
        raise _bad(f"the shape of '{INPUT}' has {wanted} values, found {found}")
    return pixels


def _files(data: Any, wanted: int) -> list[bytes]:
    files = list(_binary_files(data)) if isinstance(data, bytes) else [_from_base64(text) for text in _flat(data)]
    if len(files) != wanted:
        raise _bad(f"the shape of '{INPUT}' has {wanted} elements, found {len(files)}")
    return files


def _binary_files(data: bytes) -> Iterable[bytes]:
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4 + length
        if at > len(data):
            what = f"an element of '{INPUT}' says it has {length} bytes, and the tensor ends before"
            raise RefusedError(400, "bad-binary", what)
        yield data[at - length : at]


def _from_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise _bad(f"an element of '{INPUT}' must be an image file in base64, found a {type(text).__name__}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"an element of '{INPUT}' is not base64: {error}") from error


def _flat(data: Any) -> Iterable[Any]:
    """Return the values of nested lists in row-major order."""
    if not isinstance(data, list):
        raise _bad(f"'data' of '{INPUT}' must be a list, found a {type(data).__name__}")
    while data and isinstance(data[0], list):
        if not all(isinstance(row, list) for row in data):
            raise _bad(f"'data' of '{INPUT}' mixes lists and values")
        data = list(chain.from_iterable(data))
    return data


def _classified(row: Sequence[float], top: int, labels: Sequence[str]) -> list[str]:
    best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top]
    return [f"{row[i]:.6f}:{i}:{labels[i]}" for i in best]


def _floats(values: Iterable[float]) -> bytes:
    packed = array("f", values)
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        packed.byteswap()
    return packed.tobytes()


def _bytes_tensor(texts: Iterable[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(chain.from_iterable((struct.pack("<I", len(e)), e) for e in encoded))


def _bad(what: str) -> RefusedError:
    return RefusedError(400, "bad-tensor" if INPUT in what else "bad-request", what)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
