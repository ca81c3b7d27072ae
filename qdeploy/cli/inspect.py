"""The command ``qdeploy inspect``: its option and its view of a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qdeploy.cli.calibrate import lines as confidence_lines
from qdeploy.cli.options import Json, ModelFile
from qdeploy.cli.output import emit_json, field_value, note, say
from qdeploy.core.only_with import switched_on

if TYPE_CHECKING:
    from qdeploy.core.artifact import Artifact


def inspect_command(artifact: ModelFile = None, json: Json = False) -> None:
    """Verify a model file's checksum and show its card."""
    from qdeploy.core.artifact import read_artifact
    from qdeploy.runtime.classifier import find_artifact

    path = find_artifact(artifact)
    if path != artifact:
        note(f"inspecting {path}")
    found = read_artifact(path)
    card = found.card
    if json:
        engine = {"engine": {k: v for k, v in found.engine.to_dict().items() if k != "card"}} if found.engine else {}
        own = {"sha256": found.sha256, "size_bytes": len(found.data), "native": _as_c(found)}
        emit_json({**card.to_dict(), **engine, **own})
        return
    for key, text in _lines(found).items():
        say(f"{key:>13}  {text}")


def _lines(found: Artifact) -> dict[str, str]:
    card, goldens, rules = found.card, found.card.goldens, found.card.preprocessing.to_dict()
    origin, accuracy, calibration = card.origin, card.accuracy, card.calibration
    lines = {
        "file": f"{found.path} ({len(found.data):,} bytes, checksum verified)",
        "model": f"{card.model.name}, {card.model.params:,} parameters, {card.model.macs_shown}",
        "precision": card.precision
        + (f", encoding {card.target}, {len(card.float_layers)} layers left in float" if calibration else ""),
        "labels": ", ".join(card.labels),
        "input": f"uint8 RGB {rules['size']}x{rules['size']}",
        "preprocessing": f"{rules['crop']}, {rules['resize']}, EXIF turned, 16 bits: {rules['sixteen_bit']}, "
        f"transparency on RGB {rules['background']} ({rules['sha256'][:12]})",
        "data": f"{origin.dataset.name} {origin.dataset.sha256[:12]}",
        "training": _switched_on(origin.training) or "elsewhere",
        "commit": f"{str(origin.git['commit'])[:12]}{' and changes' if origin.git['dirty'] else ''}"
        if origin.git
        else "unknown",
        "made with": ", ".join(f"{k} {v}" for k, v in origin.versions.items()),
        "made from": str(found.engine.source_sha256 if found.engine else origin.parent_sha256),
        "goldens": f"{len(goldens.rows)} images, at least {goldens.min_sqnr_db:.0f} dB",
        "sha256": found.sha256,
    }
    if accuracy:
        low, high = accuracy.ci95
        n = f"{accuracy.n} {accuracy.split} images"
        lines["accuracy"] = f"{accuracy.top1:.2f} % top-1 ({low:.2f} to {high:.2f}) on {n}"
    if card.confidence:
        lines["confidence"] = "; ".join(confidence_lines(card.confidence))
    if calibration:
        kind = "RANDOM inputs" if calibration.random else "training images"
        lines["calibration"] = f"{calibration.method} on {len(calibration.images)} {kind}, seed {calibration.seed}"
    if choice := card.float_choice:
        by = {"search": "the search", "user": "--float-layers", "file": "--like"}.get(choice.by, choice.by)
        lines["in float"] = f"{', '.join(choice.layers) or 'nothing'}, chosen by {by}"
    if card.qat_epochs:
        lines["fine-tuned"] = f"{card.qat_epochs} epochs with rounded weights and activations"
    if found.engine:
        lines["engine"] = f"{found.engine.describe()}, batches of 1 to {found.engine.max_batch}"
        return lines
    needed = _as_c(found)
    lines["as C"] = str(needed["refused"])
    if not needed["refused"]:
        lines["as C"] = (
            f"{needed['flash_bytes']:,} bytes of flash for weights and tables, {needed['ram_bytes']:,} of RAM, stack "
            f"below {needed['stack_bytes']:,}; a whole program on a Cortex-M: {needed['whole_flash_bytes']:,} of "
            f"flash, {needed['whole_ram_bytes']:,} of RAM"
        )
    return lines


def _as_c(found: Artifact) -> dict[str, int | str | None]:
    """Return what the model needs as C (``qdeploy kit native``), or why it cannot be compiled."""
    from qdeploy.core.errors import ArtifactError
    from qdeploy.native.source import memory_of

    try:
        return {**memory_of(found), "refused": None}
    except ArtifactError as error:
        return {"refused": str(error)}


def _switched_on(training: Mapping[str, Any]) -> str:
    """Name what a training used; parts that were off are left out, ``--json`` has all."""
    used = switched_on(training).items()
    return ", ".join(f"{k.replace('_', ' ')}{'' if v is True else f' {field_value(v)}'}" for k, v in used)
