"""``qdeploy inspect``"""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.output import emit_json


@click.command("inspect")
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option("--json", is_flag=True, help="Print the whole card as one JSON document.")
def inspect_command(artifact: Path | None, json: bool) -> None:
    """Verify a model file's checksum and show its card.

    ARTIFACT is a model file or an export's folder. Default: as for predict.
    """
    from qdeploy.core.artifact import read_artifact
    from qdeploy.runtime.classifier import find_artifact

    found = read_artifact(find_artifact(artifact))
    card = found.card
    if json:
        engine = {"engine": {k: v for k, v in found.engine.to_dict().items() if k != "card"}} if found.engine else {}
        emit_json({**card.to_dict(), **engine, "sha256": found.sha256, "size_bytes": len(found.data)})
        return
    lineage = card.lineage
    accuracy = card.accuracy
    low, high = accuracy["ci95"]
    lines = {
        "file": f"{found.path} ({len(found.data):,} bytes, checksum verified)",
        "model": f"{card.model['name']}, {card.model['params']:,} parameters, {card.model['macs'] / 1e6:.1f} M MACs",
        "precision": f"{card.precision}, encoding {card.target}, {len(card.float_layers)} layers left in float",
        "labels": ", ".join(card.labels),
        "input": f"uint8 RGB {card.preprocessing.size}x{card.preprocessing.size}",
        "accuracy": f"{accuracy['top1']} % top-1 ({low} to {high}) on {accuracy['n']} {accuracy['split']} images",
        "data": f"{lineage['dataset']['name']} {lineage['dataset']['sha256'][:12]}",
        "training": ", ".join(f"{k} {v}" for k, v in lineage["training"].items()),
        "made with": ", ".join(f"{k} {v}" for k, v in lineage["versions"].items()),
        "sha256": found.sha256,
    }
    if found.engine:
        lines["engine"] = f"{found.engine.describe()}, batches of 1 to {found.engine.max_batch}"
    for key, text in lines.items():
        print(f"{key:>10}  {text}")
