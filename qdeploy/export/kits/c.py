"""A folder for devices without Python: models, labels, goldens, and a C program that runs them.

The program's text is in ``c_runtime/``; what depends on the model is written here.
"""

from __future__ import annotations

import string
import struct
from collections.abc import Sequence
from pathlib import Path

from qdeploy.core.artifact import Artifact
from qdeploy.core.card import Goldens
from qdeploy.core.confidence import Cut
from qdeploy.core.files import write_bytes, write_json
from qdeploy.core.printable import printable
from qdeploy.export.kits.folder import fill_templates
from qdeploy.native.photos import ppm

TEMPLATES = Path(__file__).parent / "c_runtime"
GOLDENS_MAGIC = b"QDGOLD1\0"
PLAIN = set(string.printable) - set(string.whitespace) - set('"?\\') | {" "}
"""What a C string holds as it is; a question mark could begin a trigraph."""


def write_c_kit(folder: Path, artifacts: Sequence[Artifact], recommended: str) -> None:
    """Write the kit's files; it takes the ONNX files, and the README runs the recommended one."""
    models = [a for a in artifacts if a.engine is None]
    for artifact in models:
        name = Path(artifact.path.name)
        write_bytes(folder / name, artifact.data)
        write_json(folder / name.with_suffix(".card.json"), artifact.card.to_dict())
        write_bytes(folder / name.with_suffix(".goldens"), goldens_bytes(artifact.card.goldens))
    write_bytes(folder / "example.ppm", ppm(models[0].card.goldens.images[0]))
    fill_templates(TEMPLATES, folder, _words(models, recommended))


def goldens_bytes(goldens: Goldens) -> bytes:
    """Return goldens as the C program reads them.

    Little endian: magic of 8 bytes; count, size and classes as uint32; the least agreement in decibels as float32; the
    images ``[N, S, S, 3]``; the logits ``[N, K]`` as float32.
    """
    count, size = goldens.images.shape[:2]
    head = struct.pack("<8sIIIf", GOLDENS_MAGIC, count, size, goldens.logits.shape[1], goldens.min_sqnr_db)
    return head + goldens.images.tobytes() + goldens.logits.astype("<f4").tobytes()


def c_string(text: str) -> str:
    """Write a text as a C string literal in UTF-8."""
    return '"' + "".join(chr(b) if chr(b) in PLAIN else f"\\{b:03o}" for b in text.encode()) + '"'


def c_cut(cut: Cut, file: str) -> str:
    """Write which images a model file calls unknown as C."""
    return f"{{{c_string(file)}, {cut.temperature:.9e}f, {cut.threshold:.9e}f}}"


def _words(artifacts: list[Artifact], recommended: str) -> dict[str, object]:
    """What the templates leave open."""
    card = artifacts[0].card
    rows = (
        f"| `{a.path.name}` | {a.card.precision}, made for {a.card.target}, {len(a.data):,} bytes; beside it its card "
        "(JSON) and its goldens |"
        for a in artifacts
    )
    return {
        "name": printable(card.name),
        "recommended": recommended,
        "models": "\n".join(rows),
        "size": card.preprocessing.size,
        "classes": len(card.labels),
        "labels": "\n".join(f"    {c_string(label)}," for label in card.labels),
        "cuts": "".join(f"{c_cut(a.card.cut, a.path.name)}, " for a in artifacts if a.card.cut),
        "background": ", ".join(map(str, card.preprocessing.background)),
        "interpolation": card.preprocessing.interpolation,
    }
