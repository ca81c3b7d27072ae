"""Serialises a graph with its card and checksum into the bytes of a model file."""

from __future__ import annotations

import json

import onnx

from qdeploy.core.artifact import BLANK, CARD_KEY, CHECKSUM_KEY, sealed
from qdeploy.core.card import Card
from qdeploy.core.errors import InputError
from qdeploy.export.graph.size import MAX_BYTES


def sealed_bytes(model: onnx.ModelProto, card: Card) -> bytes:
    """Serialise a graph with its card; the same graph and card always give the same bytes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.producer_name = "qdeploy"
    copy.producer_version = card.origin.versions.get("qdeploy", "")
    del copy.metadata_props[:]
    onnx.helper.set_model_props(
        copy, {CARD_KEY: json.dumps(card.to_dict(), separators=(",", ":")), CHECKSUM_KEY: BLANK}
    )
    if copy.ByteSize() > MAX_BYTES:
        raise InputError("the model is larger than 2 GiB, the limit of a single ONNX file")
    return sealed(copy.SerializeToString(deterministic=True))
