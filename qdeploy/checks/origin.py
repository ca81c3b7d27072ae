"""What a float file was made from, looked for by its SHA-256."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.artifact import EXPORTS, ONNX_FILES
from qdeploy.core.card import MODULE_FAMILY, ONNX_FAMILY, Card
from qdeploy.core.errors import InputError
from qdeploy.core.files import read_json, sha256_of
from qdeploy.core.run_folder import RECORD, RUNS, read_run


def find_origin(card: Card) -> tuple[bool | None, str]:
    """Look for the run or the file that a float file was made from.

    Returns:
        Whether it is as it was, None if it is not here; and what was found.
    """
    digest = card.origin.parent_sha256
    trained_here = card.model.family not in (ONNX_FAMILY, MODULE_FAMILY)
    for record in sorted(RUNS.glob(f"*/{RECORD}")) if trained_here else ():
        try:
            fields = read_json(record)
            if not isinstance(fields, dict) or fields.get("weights_sha256") != digest:
                continue
            read_run(record.parent)
        except InputError as error:
            return False, str(error)
        return True, f"exported from {record.parent}, whose weights have this hash"
    for file in [*sorted(Path().glob("*.onnx")), *sorted(EXPORTS.glob(f"*/{ONNX_FILES}"))]:
        if _has_hash(file, digest):
            return True, f"made from {file}, which has this hash"
    if card.model.family == MODULE_FAMILY:
        return None, f"made of a module in a program, whose weights had the hash {digest[:12]}"
    what = f"neither a run below ./{RUNS} nor a file" if trained_here else "no file"
    return None, f"{what} in this folder or below ./{EXPORTS} has the hash of what it was made from, {digest[:12]}"


def _has_hash(file: Path, digest: str) -> bool:
    try:
        return file.is_file() and sha256_of(file.read_bytes()) == digest
    except OSError:  # another's file
        return False
