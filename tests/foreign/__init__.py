"""Graphs as other people's tools write them: names, legal ONNX, the edges of float32. Seeded, small, in kinds."""

from __future__ import annotations

from collections.abc import Iterator

from tests.foreign.build import Foreign
from tests.foreign.edges import edge_graphs
from tests.foreign.fused import fused_graphs
from tests.foreign.legal import legal_graphs
from tests.foreign.names import name_graphs
from tests.foreign.refused import refused_graphs
from tests.foreign.untidy import untidy_graphs


def foreign_graphs() -> Iterator[Foreign]:
    """Yield all graphs of the corpus; the same each time."""
    yield from name_graphs()
    yield from legal_graphs()
    yield from fused_graphs()
    yield from edge_graphs()
    yield from refused_graphs()
    yield from untidy_graphs()
