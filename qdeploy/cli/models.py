"""The command ``qdeploy models``: its table."""

from __future__ import annotations

from dataclasses import asdict

from qdeploy.cli.options import Json
from qdeploy.cli.output import emit_json, extra_needed, note
from qdeploy.cli.tables import show_table, table


def models_command(json: Json = False) -> None:
    """List every model with its parameters and multiply-accumulates."""
    with extra_needed():
        from qdeploy.models.registry import MODELS, summarise

    summaries = [summarise(name) for name in MODELS]
    if json:
        emit_json([asdict(s) for s in summaries])
        return
    head = ("model", "family", "parameters", "M MACs", "px", "classes")
    rows = [
        (s.name, s.family, f"{s.params:,}", f"{s.macs / 1e6:.1f}", str(s.input_size), str(s.num_classes))
        for s in summaries
    ]
    show_table(table(head, rows, words=(0, 1)))
    note("px: side of an image in pixels; M MACs: millions of multiply-accumulates an image")
    note("Also any classifier of other libraries, from scratch: torchvision/NAME, timm/NAME")
