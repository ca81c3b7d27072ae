"""``qdeploy models``"""

from __future__ import annotations

from dataclasses import asdict

import click

from qdeploy.cli.output import emit_json, extra_needed, show_table


@click.command("models")
@click.option("--json", is_flag=True, help="Print the list as one JSON document.")
def models_command(json: bool) -> None:
    """List every model with its parameters and multiply-accumulates."""
    with extra_needed():
        from qdeploy.models.registry import MODELS, summarise

    summaries = [summarise(name) for name in MODELS]
    if json:
        emit_json([asdict(s) for s in summaries])
        return
    from rich.table import Table

    table = Table("model", "family")
    for name in ("parameters", "M MACs", "input", "classes"):
        table.add_column(name, justify="right")
    for s in summaries:
        size = f"{s.input_size}x{s.input_size}"
        table.add_row(s.name, s.family, f"{s.params:,}", f"{s.macs / 1e6:.1f}", size, str(s.num_classes))
    show_table(table)
    click.echo("Also any classifier of other libraries, from scratch: torchvision/NAME, timm/NAME", err=True)
