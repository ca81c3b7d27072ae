"""``POST /predict``: image files in, labels and probabilities out; for curl, scripts and the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite

from qdeploy.core.confidence import UNKNOWN
from qdeploy.core.errors import ImageError
from qdeploy.core.image_formats import MAX_FILE_BYTES
from qdeploy.runtime.classifier import not_finite
from qdeploy.runtime.session import Rows
from qdeploy.serve.body import Header, decompressed
from qdeploy.serve.lanes import Task
from qdeploy.serve.models import Opened, Served
from qdeploy.serve.oip import JSON_HEADERS, Answer
from qdeploy.serve.refusal import RefusedError, refused_image

MULTIPART = b"multipart/form-data"


@dataclass
class Part:
    """One file of a form."""

    name: str = ""
    data: bytearray = field(default_factory=bytearray)


class PredictTask(Task[Answer]):
    """One request with an image file as its body, or with a form of files."""

    def __init__(
        self,
        served: Served,
        opened: Opened,
        headers: Header,
        body: bytes,
        max_body: int,
        max_images: int,
        top: int | None,
    ) -> None:
        super().__init__(served, opened)
        self._headers, self._body = headers, body
        self._max_body, self._max_images = max_body, max_images
        self._top = top
        self._names: list[str] = []
        self._refused: list[RefusedError | None] = []
        self._files: list[bytes] = []
        """What was decoded, kept only where somebody looks."""

    def prepare(self) -> bytes:
        """Decode the images.

        Raises:
            RefusedError: If there is none; of several, bad ones are told in the answer.
        """
        body = decompressed(self._body, self._headers, self._max_body)
        kind = self._headers.get(b"content-type", b"")
        if not kind.lower().startswith(MULTIPART):
            self.count, self._files = 1, [body]
            try:
                return self.opened.card.preprocessing.to_bytes(body)
            except ImageError as error:
                raise refused_image(error) from error
        parts = form_files(kind, body, self._max_images)
        pixels = [self._decoded(part) for part in parts]
        if len(parts) == 1 and self._refused[0] is not None:
            raise self._refused[0]
        good = [p for p in pixels if p]
        self.count = len(good)
        if self.look:
            self._files = [bytes(part.data) for part, p in zip(parts, pixels, strict=True) if p]
        return b"".join(good)

    def finish(self, logits: Rows, probabilities: Rows) -> Answer:
        """Write the answer; by hand, since a JSON library would take as long as decoding the image."""
        if self.look:
            for file, *both in zip(self._files, logits, probabilities, strict=True):
                self.look(file, *both)
        rows = zip(logits, probabilities, strict=True)
        if len(self._names) < 2:
            what = self._told(*next(rows))
            if what is None:
                raise refused_image(not_finite())
        else:
            entries = [
                f'{{"image": {json.dumps(name)}, {self._one_of_many(refused, rows)}}}'
                for name, refused in zip(self._names, self._refused, strict=True)
            ]
            what = f'"images": [{", ".join(entries)}]'
        body = (
            f'{{"model": "{self.served.name}", "version": "{self.served.version}", {what}, "latency_ms": '
            f'{{"queue": {(self.begun - self.arrived) / 1e6:.4f}, "decode": {(self.prepared - self.begun) / 1e6:.4f}, '
            f'"infer": {(self.inferred - self.prepared) / 1e6:.4f}}}}}'
        )
        return Answer(body.encode(), JSON_HEADERS)

    def _decoded(self, part: Part) -> bytes:
        self._names.append(part.name)
        self._refused.append(None)
        try:
            return self.opened.card.preprocessing.to_bytes(bytes(part.data))
        except ImageError as error:
            self._refused[-1] = refused_image(error)
            return b""

    def _one_of_many(self, refused: RefusedError | None, rows: Iterator[tuple[list[float], list[float]]]) -> str:
        """Return what is told of an image beside its name; it takes its rows if it has any."""
        told = None if refused else self._told(*next(rows))
        return told or json.dumps((refused or refused_image(not_finite())).document)[1:-1]

    def _told(self, logits: list[float], row: list[float]) -> str | None:
        """Return an answer as JSON without its braces; None if it is not finite."""
        if not isfinite(sum(row)):
            return None
        told, cut = f'"predictions": {self._ranked(row)}', self.opened.cut
        if cut is None:
            return told
        score = cut.score(logits, row)
        if not isfinite(score):
            return None
        label = json.dumps(UNKNOWN if score < cut.threshold else self.opened.card.labels[row.index(max(row))])
        return f'"label": {label}, "unknown": {json.dumps(score < cut.threshold)}, "score": {score:.4f}, {told}'

    def _ranked(self, row: list[float]) -> str:
        """Return the most probable labels as JSON."""
        texts = self.opened.label_texts
        best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[: self._top]
        return f"[{', '.join([f'{texts[i]}{row[i]:.6f}}}' for i in best])}]"


def form_files(content_type: bytes, body: bytes, most: int) -> list[Part]:
    """Return the files of a form.

    Raises:
        RefusedError: If the form is damaged, holds no file, or more than ``most``.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise RefusedError(400, "bad-form", "the form's Content-Type names no boundary")
    parts: list[Part] = []
    header: list[bytes] = [b"", b""]

    def begin() -> None:
        if len(parts) > most:
            raise RefusedError(400, "bad-form", f"a form may have 1 to {most} files, found more")
        parts.append(Part())

    def add_field(data: bytes, start: int, end: int) -> None:
        header[0] += data[start:end]

    def add_value(data: bytes, start: int, end: int) -> None:
        header[1] += data[start:end]

    def end_header() -> None:
        if header[0].lower() == b"content-disposition":
            _, given = parse_options_header(bytes(header[1]))
            name = given.get(b"filename") or given.get(b"name") or b""
            parts[-1].name = name.decode("utf-8", "replace")[:255]
        header[:] = [b"", b""]

    def add_data(data: bytes, start: int, end: int) -> None:
        parts[-1].data += data[start:end]
        if len(parts[-1].data) > MAX_FILE_BYTES + 1:
            raise RefusedError(413, "too-large", f"a file of the form has more than {MAX_FILE_BYTES // 2**20} MiB")

    ended: list[bool] = []
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": add_field,
                "on_header_value": add_value,
                "on_header_end": end_header,
                "on_part_data": add_data,
                "on_end": lambda: ended.append(True),
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RefusedError(400, "bad-form", f"the form cannot be read: {error}") from error
    if not ended:
        raise RefusedError(400, "bad-form", "the form is cut off")
    if not 1 <= len(parts) <= most:
        raise RefusedError(400, "bad-form", f"a form may have 1 to {most} files, found {len(parts)}")
    return parts
