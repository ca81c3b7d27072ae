"""Model files encrypted at rest: AES-256-GCM, decrypted to memory alone.

An encrypted file is ``MAGIC``, 12 random bytes, and the ciphertext with its tag of 16 bytes; ``MAGIC`` is authenticated
with it. A key is 32 bytes, written as 64 hexadecimal digits. It comes from whoever opens the file, else
from the command that ``QDEPLOY_MODEL_KEY_COMMAND`` names, which may ask a TPM or a secret store, else from the file
that ``QDEPLOY_MODEL_KEY`` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdeploy.core.errors import ArtifactError, InputError, MissingDependencyError
from qdeploy.core.key_files import read_key_file, require_new, write_secret

MAGIC = b"qdeploy aes-gcm\n"
KEY_FILE = "QDEPLOY_MODEL_KEY"
"""Environment variable: the file of a key."""
KEY_COMMAND = "QDEPLOY_MODEL_KEY_COMMAND"
"""Environment variable: a command that prints a key."""
KEY_BYTES = 32
NONCE_BYTES = 12
COMMAND_S = 30
MOST_KEY_TEXT = 1 << 12
Key = bytes | Callable[[], bytes]
"""A key's 32 bytes, or what gives them when a file turns out to be encrypted."""


def new_model_key(path: Path) -> None:
    """Make a key, readable by its owner alone.

    Raises:
        InputError: If the file exists.
    """
    require_new(path)
    write_secret(path, f"{os.urandom(KEY_BYTES).hex()}\n".encode())


def read_model_key(path: Path) -> bytes:
    """Return the key that a file holds.

    Raises:
        InputError: If it holds none.
    """
    return _parsed(read_key_file(path), str(path))


def is_encrypted(data: bytes) -> bool:
    """Return whether some bytes are of an encrypted file."""
    return data.startswith(MAGIC)


def encrypted(data: bytes, key: bytes) -> bytes:
    """Return a file's bytes encrypted, with a new nonce."""
    nonce = os.urandom(NONCE_BYTES)
    sealed: bytes = _library()(key).encrypt(nonce, data, MAGIC)
    return MAGIC + nonce + sealed


def decrypted(path: Path, data: bytes, key: Key | None = None) -> bytes:
    """Return the bytes of an encrypted file as they were.

    Args:
        path: The file, for messages.
        data: Its bytes.
        key: The key; by default that of the environment.

    Raises:
        ArtifactError: If the key is another's, or the file was changed.
        InputError: If there is no key.
    """
    cipher = _library()
    secret = _from_environment(path) if key is None else key() if callable(key) else key
    if not isinstance(secret, bytes) or len(secret) != KEY_BYTES:
        found = f"{len(secret)} bytes" if isinstance(secret, bytes) else type(secret).__name__
        raise InputError(f"the key of {path} must be {KEY_BYTES} bytes", found=found)
    from cryptography.exceptions import InvalidTag

    start = len(MAGIC) + NONCE_BYTES
    try:
        plain: bytes = cipher(secret).decrypt(data[len(MAGIC) : start], data[start:], MAGIC)
    except (InvalidTag, ValueError) as error:
        raise ArtifactError(
            f"{path} is encrypted with another key, or damaged", fix="give its key, or copy the file again"
        ) from error
    return plain


def _from_environment(path: Path) -> bytes:
    if words := os.environ.get(KEY_COMMAND):
        return _printed(words)
    if name := os.environ.get(KEY_FILE):
        return read_model_key(Path(name))
    raise InputError(f"{path} is encrypted", fix=f"name its key's file in {KEY_FILE}, or a command in {KEY_COMMAND}")


def _printed(words: str) -> bytes:
    import shlex
    import subprocess  # costs milliseconds, which files that are not encrypted do not have
    import threading
    import time

    what, begin = f"the command in {KEY_COMMAND}", time.monotonic()
    try:
        process = subprocess.Popen(shlex.split(words), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{what} cannot be started: {error}") from error
    late = threading.Timer(COMMAND_S, process.kill)
    late.start()
    with process:
        assert process.stdout is not None
        text = process.stdout.read(MOST_KEY_TEXT)
        if endless := len(text) == MOST_KEY_TEXT:  # it is no key, and may have no end
            process.kill()
    late.cancel()
    if time.monotonic() - begin >= COMMAND_S:
        raise InputError(f"{what} gave no key within {COMMAND_S} s")
    if process.returncode and not endless:
        raise InputError(f"{what} ended with exit code {process.returncode}")
    return _parsed(text, what)


def _parsed(text: bytes, source: str) -> bytes:
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(f"{source} gives no key", found=f"{len(text)} bytes", fix="a key is 64 hexadecimal digits")
    return key


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        what = "encrypted files need the package cryptography"
        raise MissingDependencyError(what, command="pip install 'qdeploy[sign]'") from error
    return AESGCM
