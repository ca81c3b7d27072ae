"""What a network will need on a microcontroller, before it is trained."""

from __future__ import annotations

from torch import nn

from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qdeploy.export.graph.temperature import with_temperature
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.sources.trace import trace
from qdeploy.models.folding import deploy
from qdeploy.native.source import memory_of_program, program_from

SOME_TEMPERATURE = 2.0


def memory_on_integers(model: nn.Module, size: int, target: str) -> dict[str, int]:
    """Return what the C of a network needs whose INT8 form leaves nothing in float, as ``memory_of`` does.

    That depends on shapes, and neither on weights nor on the ranges of values. A temperature of the probabilities,
    which an export may fit, is included.

    Args:
        model: A network in its training form, ``[B, 3, S, S]`` to ``[B, K]``.
        size: Height and width of its images.
        target: Encoding of the INT8 form.

    Raises:
        InputError: If the target is unknown.
        UnsupportedError: If it holds what has no kernel.
    """
    graph = trace(deploy(model.eval(), IMAGENET_MEAN, IMAGENET_STD), size)
    names = [name for node in graph.graph.node for name in node.output]
    ranges = {name: (-1.0, 1.0 + i / len(names)) for i, name in enumerate(names)}  # no two are alike, as in life
    int8 = quantize(graph, ranges, encoding_for(target))
    whole = with_temperature(int8, SOME_TEMPERATURE)
    return memory_of_program(program_from(whole.SerializeToString(), size))
