"""Files of keys: written once and for their owner alone, and read whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from qdeploy.core.errors import InputError
from qdeploy.core.whole import is_special

MOST_KEY_BYTES = 1 << 16


def require_new(*paths: Path) -> None:
    """Check that nothing has a key's name.

    Raises:
        InputError: If something has.
    """
    for path in paths:
        if os.path.lexists(path):
            raise InputError(f"{path} exists, and a key that is replaced is lost", fix="give another name")


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def read_key_file(path: Path) -> bytes:
    """Return the first bytes of a key's file.

    Raises:
        InputError: If it cannot be read.
    """
    if is_special(path):
        raise InputError(f"the key {path} is a device or pipe", fix="give a regular file")
    try:
        with path.open("rb") as stream:
            return stream.read(MOST_KEY_BYTES)
    except OSError as error:
        raise InputError(f"the key {path} cannot be read: {error.strerror}") from error
