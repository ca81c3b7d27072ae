"""Signatures of model files: Ed25519 (RFC 8032) over a file's bytes, in a file of its own beside it.

``model.int8.onnx.sig`` holds the 64 bytes of the signature and nothing else, so that other tools make and check it too
(``openssl pkeyutl -rawin``); keys are PEM files as OpenSSL writes them. The model file stays as it is, and its hash.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdeploy.core.errors import ArtifactError, InputError, MissingDependencyError
from qdeploy.core.files import write_bytes
from qdeploy.core.key_files import read_key_file, require_new, write_secret
from qdeploy.core.whole import is_special

SUFFIX = ".sig"
TRUSTED = "QDEPLOY_TRUSTED_KEYS"
"""Environment variable: files of public keys, between colons (semicolons on Windows)."""
SIGNATURE_BYTES = 64


def new_key(path: Path) -> Path:
    """Make a private key, readable by its owner alone, and its public key beside it as ``<path>.pub``.

    Returns:
        The public key's file.

    Raises:
        InputError: If either file exists.
    """
    primitives, serialization = _library()
    public = path.with_name(f"{path.name}.pub")
    require_new(path, public)
    key = primitives.Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_secret(path, secret)
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    write_bytes(public, key.public_key().public_bytes(*pem))
    return public


def sign(file: Path, data: bytes, key: Path) -> Path:
    """Write a file's signature beside it.

    Args:
        file: The file.
        data: Its bytes, as they were checked.
        key: File of the private key.

    Returns:
        The signature's file; an earlier one is replaced.

    Raises:
        InputError: If the key cannot be used.
    """
    primitives, serialization = _library()
    try:
        private = serialization.load_pem_private_key(read_key_file(key), None)
    except (ValueError, TypeError, _unsupported()) as error:
        raise InputError(f"{key} is no private key in PEM without a password", fix=_MAKE) from error
    if not isinstance(private, primitives.Ed25519PrivateKey):
        raise InputError(f"{key} is a key of another kind than Ed25519", fix=_MAKE)
    target = signature_of(file)
    write_bytes(target, private.sign(data))
    return target


def signature_of(file: Path) -> Path:
    """Return where a file's signature is."""
    return file.with_name(file.name + SUFFIX)


def trusted_keys() -> tuple[Path, ...]:
    """Return the public keys that the environment names; without any, files need no signature."""
    return tuple(Path(name) for name in os.environ.get(TRUSTED, "").split(os.pathsep) if name)


def require_signature(file: Path, data: bytes, keys: Sequence[Path]) -> Path:
    """Check that some bytes, read from a file, are signed by one of the keys.

    Returns:
        The key.

    Raises:
        ArtifactError: If there is no signature beside the file, or none of the keys made it of these bytes.
        InputError: If a key cannot be used.
    """
    from contextlib import suppress

    public = [(key, _public(key)) for key in keys]
    place = signature_of(file)
    try:
        if is_special(place):
            raise ArtifactError(f"{place} is a device or pipe", fix="give a regular file")
        with place.open("rb") as stream:
            signature = stream.read(SIGNATURE_BYTES + 1)
    except FileNotFoundError as error:
        raise ArtifactError(f"{file} is not signed: there is no {place.name} beside it", fix=_SIGN) from error
    except OSError as error:
        raise ArtifactError(f"{place} cannot be read: {error.strerror}") from error
    from cryptography.exceptions import InvalidSignature

    for key, opened in public:
        with suppress(InvalidSignature):
            opened.verify(signature, data)
            return key
    names = ", ".join(map(str, keys))
    raise ArtifactError(f"{file} is not what was signed, or not by {names}", fix="copy file and signature again")


_MAKE = "`qdeploy sign` makes one with `new_key`"
_SIGN = "`qdeploy sign` makes a signature; copy it with the file"


def _public(key: Path) -> Any:
    primitives, serialization = _library()
    try:
        found = serialization.load_pem_public_key(read_key_file(key))
    except (ValueError, TypeError, _unsupported()) as error:
        raise InputError(f"{key} is no public key in PEM", fix="give the file that ends in .pub") from error
    if not isinstance(found, primitives.Ed25519PublicKey):
        raise InputError(f"{key} is a key of another kind than Ed25519", fix=_MAKE)
    return found


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        what = "signatures need the package cryptography"
        raise MissingDependencyError(what, command="pip install 'qdeploy[sign]'") from error
    return ed25519, serialization


def _unsupported() -> type[Exception]:
    """Return what the library raises for keys of kinds that it does not know."""
    from cryptography.exceptions import UnsupportedAlgorithm

    kind: type[Exception] = UnsupportedAlgorithm
    return kind
