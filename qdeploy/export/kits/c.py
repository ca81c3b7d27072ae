"""A folder for devices without Python: models, labels, goldens, and a C program that runs them.

The program's text is in ``c_runtime/``; what depends on the model is written here.
"""

from __future__ import annotations

import string
import struct
from pathlib import Path
from string import Template

from qdeploy.core.artifact import Artifact
from qdeploy.core.card import Goldens
from qdeploy.core.errors import InputError
from qdeploy.core.files import folder_made_whole, sha256_of, write_bytes, write_json

TEMPLATES = Path(__file__).parent / "c_runtime"
FOLDER = "kit-c"
SUMS = "SHA256SUMS"
GOLDENS_MAGIC = b"QDGOLD1\0"
PLAIN = set(string.printable) - set(string.whitespace) - set('"?\\') | {" "}
"""What a C string holds as it is; a question mark could begin a trigraph."""


def write_c_kit(out: Path, artifacts: list[Artifact], recommended: str) -> None:
    """Write the kit.

    Args:
        out: The kit's folder; replaced if it is an unchanged kit.
        artifacts: ONNX files of one export.
        recommended: Name of the file that the README runs.

    Raises:
        InputError: If ``out`` holds anything else.
    """
    if out.exists() and not is_unchanged_kit(out):
        raise InputError(f"{out} is no kit, or was changed, and would be replaced; move it away first")
    with folder_made_whole(out) as folder:
        for artifact in artifacts:
            name = Path(artifact.path.name)
            write_bytes(folder / name, artifact.data)
            write_json(folder / name.with_suffix(".card.json"), artifact.card.to_dict())
            write_bytes(folder / name.with_suffix(".goldens"), goldens_bytes(artifact.card.goldens))
        write_bytes(folder / "example.ppm", _ppm(artifacts[0].card.goldens))
        words = _words(artifacts, recommended)
        for template in TEMPLATES.iterdir():
            text = template.read_text()
            if template.suffix == ".in":
                text = Template(text).substitute(words)
            write_bytes(folder / template.name.removesuffix(".in"), text.encode())
        sums = {p.name: sha256_of(p.read_bytes()) for p in sorted(folder.iterdir())}
        write_bytes(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())


def is_unchanged_kit(folder: Path) -> bool:
    """Tell whether a folder holds a kit as it was written, and nothing else."""
    try:
        lines = (line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines())
        listed = {name: digest for digest, name in lines}
        files = {p.name: sha256_of(p.read_bytes()) for p in folder.iterdir() if p.name != SUMS}
    except (OSError, ValueError):
        return False
    return files == listed


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


def _words(artifacts: list[Artifact], recommended: str) -> dict[str, object]:
    """What the templates leave open."""
    card = artifacts[0].card
    rows = (
        f"| `{a.path.name}` | {a.card.precision}, made for {a.card.target}, {len(a.data):,} bytes; beside it its card "
        "(JSON) and its goldens |"
        for a in artifacts
    )
    return {
        "name": card.name,
        "recommended": recommended,
        "models": "\n".join(rows),
        "size": card.preprocessing.size,
        "classes": len(card.labels),
        "labels": "\n".join(f"    {c_string(label)}," for label in card.labels),
        "background": ", ".join(map(str, card.preprocessing.background)),
        "interpolation": card.preprocessing.interpolation,
    }


def _ppm(goldens: Goldens) -> bytes:
    """Return the first golden image as a binary PPM."""
    size = goldens.images.shape[1]
    return f"P6\n{size} {size}\n255\n".encode() + goldens.images[0].tobytes()
