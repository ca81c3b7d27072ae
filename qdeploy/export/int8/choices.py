"""Choices of float layers as opened graphs: each is made once, and opened anew as often as it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

import onnx

from qdeploy.core.artifact import Artifact
from qdeploy.core.card import Card
from qdeploy.core.machine import compute_threads
from qdeploy.core.metrics import Floats
from qdeploy.export.int8.clock import FloatNodes
from qdeploy.export.int8.encodings import Encoding
from qdeploy.export.int8.quantize import Integers, quantize
from qdeploy.export.int8.ranges import Range
from qdeploy.runtime.session import Session, open_session

KEPT_BYTES = 64_000_000
"""Size of the graphs that are kept: to make one takes as long as to open it."""


@dataclass(kw_only=True)
class Choices:
    """The graphs of one calibration and encoding, by what they leave in float."""

    model: onnx.ModelProto
    """The float graph."""
    card: Card
    """Card with which they are opened."""
    encoding: Encoding
    ranges: Mapping[str, Range]
    biases: Mapping[str, Floats]
    """Corrected biases of the layers whose bias expects rounded weights, by name."""
    integers: Integers = field(default_factory=Integers)
    """What the graphs have in common."""
    _kept: dict[FloatNodes | None, bytes] = field(init=False, default_factory=dict)
    _lock: Lock = field(init=False, default_factory=Lock)

    def model_of(self, nodes: FloatNodes) -> onnx.ModelProto:
        """Return the graph that leaves these nodes in float."""
        return quantize(self.model, self.ranges, self.encoding, nodes, self.biases, self.integers)

    @contextmanager
    def opened(self, choices: Sequence[FloatNodes | None]) -> Iterator[list[Session]]:
        """Open graphs, and close them; None is the float graph.

        One thread shows best what a part costs, and a neighbour disturbs it least; the export's verdict times the files
        as they will run.
        """
        with ExitStack() as stack:
            with ThreadPoolExecutor(compute_threads()) as pool:
                sessions = [stack.enter_context(session) for session in pool.map(self._open, choices)]
            yield sessions

    def _open(self, nodes: FloatNodes | None) -> Session:
        card = replace(self.card, precision="fp32", target="float") if nodes is None else self.card
        name = Path(f"the {'float' if nodes is None else 'INT8'} graph")  # not on disk, and without a checksum
        return open_session(Artifact(name, self._bytes(nodes), card), threads=1, selftest=False)

    def _bytes(self, nodes: FloatNodes | None) -> bytes:
        """Return a graph, made or kept; of those that are kept the ones not asked for the longest go."""
        with self._lock:
            data = self._kept.pop(nodes, None)
        if data is None:
            data = (self.model if nodes is None else self.model_of(nodes)).SerializeToString()
        if len(data) > KEPT_BYTES:
            return data
        with self._lock:
            self._kept[nodes] = data
            while sum(map(len, self._kept.values())) > KEPT_BYTES:
                del self._kept[next(iter(self._kept))]
        return data
