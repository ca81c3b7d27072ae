"""Compiled libraries that travel with a model file, for devices without a compiler.

``model.int8.onnx.aarch64.so`` lies beside ``model.int8.onnx``: an ELF library, then a record (JSON) of what it was made
of, then the SHA-256 of all that. Loaders do not look behind an ELF library's end. Everything is checked before the
library is loaded, since loading runs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import ArtifactError
from qdeploy.core.files import sha256_of
from qdeploy.core.json_text import parse_json
from qdeploy.core.regular import TooLargeError, read_regular
from qdeploy.core.signing import require_signature, trusted_keys
from qdeploy.native.kernels import KERNEL_FILES, KERNELS

SUFFIX = ".so"
MARK = b"\nqdeploy native library\n"
SCHEMA = 1
DIGITS = 64
MOST_BYTES = 1 << 30
AGAIN = "export again, or copy it again"
_MACHINES = {3: "i686", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""By the number of an ELF file's ``e_machine``."""
_HARD_FLOAT = 0x400
"""In ``e_flags`` on ARM: floats are passed in registers of floats."""


def architecture_of(data: bytes) -> str:
    """Return the kind of CPU and of calls of an ELF program or library: x86_64, aarch64, armhf and so on.

    Raises:
        ArtifactError: If it is none for a CPU that is known.
    """
    number = int.from_bytes(data[18:20], "little")
    little = data[:4] == b"\x7fELF" and data[5:6] == b"\1"
    if not little or number not in _MACHINES:
        raise ArtifactError("it is no ELF library for a CPU that is known")
    if _MACHINES[number] != "arm":
        return _MACHINES[number]
    return "armhf" if int.from_bytes(data[36:40], "little") & _HARD_FLOAT else "armel"


def architecture_here() -> str | None:
    """Return that of this process; None if libraries are of another format here."""
    if not sys.executable:  # Python inside another program
        return None
    try:
        with open(sys.executable, "rb") as stream:
            return architecture_of(stream.read(64))
    except (OSError, ArtifactError):
        return None


def kernels_sha256() -> str:
    """Return the hash of what a library is made of beside the model: the kernels, and what writes their calls."""
    files = [*(KERNELS / name for name in KERNEL_FILES), *sorted(Path(__file__).parent.glob("*.py"))]
    return sha256_of("".join(sha256_of(file.read_bytes()) for file in files).encode())


def sealed_library(library: bytes, artifact: Artifact) -> bytes:
    """Put record and checksum behind a compiled library.

    Raises:
        ArtifactError: If it is no ELF library.
    """
    record = {
        "schema": SCHEMA,
        "model_sha256": artifact.sha256,
        "architecture": architecture_of(library),
        "kernels_sha256": kernels_sha256(),
    }
    body = library + MARK + json.dumps(record).encode()
    return body + sha256_of(body).encode()


def library_files(model: Path) -> list[Path]:
    """List the libraries beside a model file."""
    return sorted(p for p in model.parent.glob(f"*{SUFFIX}") if p.name.startswith(f"{model.name}."))


def library_file(model: Path, architecture: str) -> Path:
    """Return where a model file's library for some CPUs is."""
    return model.with_name(f"{model.name}.{architecture}{SUFFIX}")


def read_library(file: Path, artifact: Artifact, trusted: Sequence[Path] | None = None) -> bytes:
    """Read a library once and check that it is whole, of this model file and of this version's kernels.

    Args:
        file: The library.
        artifact: The model file that it is for.
        trusted: Public keys, one of which must have signed it; by default those that ``QDEPLOY_TRUSTED_KEYS`` names.

    Returns:
        The bytes that were checked.

    Raises:
        ArtifactError: If it is not.
    """
    try:
        data = read_regular(file, MOST_BYTES)
    except (OSError, TooLargeError) as error:
        raise ArtifactError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if keys := trusted_keys() if trusted is None else trusted:
        require_signature(file, data, keys)
    body, digest = data[:-DIGITS], data[-DIGITS:]
    if sha256_of(body).encode() != digest or MARK not in body:
        raise ArtifactError(f"{file} is damaged: its checksum does not match its contents", fix=AGAIN)
    library, _, text = body.rpartition(MARK)
    try:
        record = dict(parse_json(text))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{file} has an unusable record: {error}", fix=AGAIN) from error
    try:
        made = architecture_of(library)
    except ArtifactError as error:
        raise ArtifactError(f"{file} cannot be used: {error}") from error
    wanted = {
        "schema": (SCHEMA, "is of another version of qdeploy"),
        "architecture": (made, "contradicts itself"),
        "model_sha256": (artifact.sha256, f"was compiled from another file than {artifact.path.name}"),
        "kernels_sha256": (kernels_sha256(), "was compiled by another version of qdeploy"),
    }
    for key, (value, why) in wanted.items():
        if record.get(key) != value:
            raise ArtifactError(f"{file} {why}", fix=AGAIN)
    if file.name != library_file(artifact.path, record["architecture"]).name:
        raise ArtifactError(f"{file} is for CPUs of the kind {record['architecture']}", fix=AGAIN)
    return data
