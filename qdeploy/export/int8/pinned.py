"""Float layers that the user gave instead of a search: named parts, or those of another INT8 file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.card import FloatLayersRecord
from qdeploy.core.errors import InputError, near_miss
from qdeploy.export.config import ExportConfig
from qdeploy.export.int8.clock import FloatNodes
from qdeploy.export.int8.encodings import Encoding
from qdeploy.export.int8.units import modules_of, quantizable, units_of

NOTHING = "none"


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A choice of float layers that is not searched for."""

    nodes: FloatNodes
    record: FloatLayersRecord
    """What the card says of it."""


def pinned(config: ExportConfig, model: onnx.ModelProto, encoding: Encoding) -> Pinned | None:
    """Return the choice that an export was told to make; None if it is to be searched for.

    Raises:
        InputError: If a name is unknown, or the file is no INT8 file of this model.
    """
    if config.like is not None:
        return _like(config.like, model, encoding)
    if config.float_layers is None:
        return None
    names = tuple(name for name in config.float_layers if name != NOTHING)
    nodes: FloatNodes = frozenset().union(*(_named(name, model, encoding) for name in names))
    return Pinned(nodes=nodes, record=FloatLayersRecord(by="user", layers=names))


def _named(name: str, model: onnx.ModelProto, encoding: Encoding) -> FloatNodes:
    """Return the nodes of a part, a module or a layer."""
    units = {u.name: u.nodes for u in units_of(model, encoding)}
    if name in units:
        return units[name]
    may = quantizable(model, encoding)
    inside = frozenset(n for n in may if name in (n, *modules_of(n)))
    if inside:
        return inside
    known = sorted({*units, *(m for n in may for m in modules_of(n))})
    raise InputError(
        f"`float_layers`: the model has no part '{name}'{near_miss(name, known)}",
        fix=f"its parts are {', '.join(units)}",
    )


def int8_artifact(file: Path) -> Artifact:
    """Read the file that an export is to be like.

    Raises:
        ArtifactError: If it cannot be read.
        InputError: If it is no INT8 file.
    """
    artifact = read_artifact(file)
    if artifact.card.precision != "int8":
        raise InputError(f"`like` takes an INT8 file, and {file} is {artifact.card.precision}", fix="give an INT8 file")
    return artifact


def _like(file: Path, model: onnx.ModelProto, encoding: Encoding) -> Pinned:
    """Return what another file of the same model leaves in float."""
    other = int8_artifact(file)
    nodes = frozenset(other.card.float_layers)
    strange = nodes - {n.name for n in model.graph.node}
    if strange:
        raise InputError(
            f"`like`: {file} is of another model: it leaves '{min(strange)}' in float, which this one does not have",
            fix="give a file made from this model",
        )
    choice = other.card.float_choice
    names = choice.layers if choice and choice.layers else tuple(_names_of(nodes, model, encoding))
    return Pinned(nodes=nodes, record=FloatLayersRecord(by="file", layers=names, like_sha256=other.sha256))


def _names_of(nodes: FloatNodes, model: onnx.ModelProto, encoding: Encoding) -> list[str]:
    """Name nodes by the largest parts that they are whole of, and the rest by themselves."""
    names, left = [], nodes & quantizable(model, encoding)
    for unit in sorted(units_of(model, encoding), key=lambda u: -len(u.nodes)):
        if unit.nodes <= left:
            names.append(unit.name)
            left -= unit.nodes
    return names + sorted(left)
