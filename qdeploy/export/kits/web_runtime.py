"""ONNX Runtime for browsers: taken from npm into the cache, or from a folder of the user's; never part of this package.

Of its many files a page on plain hosts needs two: the smallest build (WebAssembly, CPU) and the script around it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from qdeploy.core.errors import MissingDependencyError, one_line
from qdeploy.core.files import locked
from qdeploy.data.places import cache_folder

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, in base64 as npm writes it: whoever serves it, these are the bytes that were tested."""
PACKAGE = f"onnxruntime-web@{VERSION}"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
SCRIPT = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm"
VARIABLE = "QDEPLOY_ORT_WEB"
TIMEOUT_S = 600
"""Of npm; the archive has 33 MB."""


@dataclass(frozen=True, kw_only=True)
class WebRuntime:
    """The two files, and the version that they say they are."""

    version: str
    script: bytes = field(repr=False)
    wasm: bytes = field(repr=False)


def web_runtime() -> WebRuntime:
    """Return the files from the folder in ``$QDEPLOY_ORT_WEB`` if it is set, else from the cache or npm.

    Raises:
        MissingDependencyError: If they are not there and cannot be fetched, or are not the published ones.
    """
    given = os.environ.get(VARIABLE)
    script, wasm = _from_folder(Path(given)) if given else _from_archive(cache_folder() / ARCHIVE)
    version = re.search(rb"ONNX Runtime Web v(\d+\.\d+\.\d+)", script[:500])
    return WebRuntime(version=version[1].decode() if version else "of unknown version", script=script, wasm=wasm)


def _from_folder(folder: Path) -> tuple[bytes, bytes]:
    """Read the files from a folder or the ``dist`` in it, as npm installs them; what is there is the user's choice."""
    for place in (folder, folder / "dist"):
        try:
            return (place / SCRIPT).read_bytes(), (place / WASM).read_bytes()
        except OSError:
            continue
    raise MissingDependencyError(
        f"{folder}, the folder in {VARIABLE}, has not both {SCRIPT} and {WASM}",
        fix=f"give the folder of npm's {PACKAGE}, or unset {VARIABLE}",
    )


def _from_archive(archive: Path) -> tuple[bytes, bytes]:
    """Read the files from npm's archive, which is fetched once."""
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with locked(archive.with_name(f".{ARCHIVE}.lock"), wait=True):
            if not archive.exists():
                _fetch(archive)
            _require_published(archive)
        with tarfile.open(archive) as tar:
            return _member(tar, SCRIPT), _member(tar, WASM)
    except OSError as error:
        raise MissingDependencyError(f"{archive} cannot be used: {error.strerror or error}", fix=_OWN) from error


_OWN = f"give a folder with the files of npm's {PACKAGE} in {VARIABLE}"


def _fetch(archive: Path) -> None:
    """Have npm fetch the archive from wherever this user's npm fetches things."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependencyError(
            f"the web kit needs {PACKAGE}, and there is no npm to fetch it with", fix=f"install npm, or {_OWN}"
        )
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{ARCHIVE}-") as work:
        try:
            command = [npm, "pack", PACKAGE, "--ignore-scripts", "--silent"]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=TIMEOUT_S)
            reason = done.stderr or done.stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        fetched = Path(work) / ARCHIVE
        if not fetched.is_file():
            words = one_line(ValueError(reason or "it says nothing"), 120)
            raise MissingDependencyError(
                f"npm could not fetch {PACKAGE} ({words})", fix=f"run again with a network, or {_OWN}"
            )
        _require_published(fetched)
        os.replace(fetched, archive)


def _require_published(archive: Path) -> None:
    with archive.open("rb") as stream:
        found = base64.b64encode(hashlib.sha512(stream.read()).digest()).decode()
    if found != SHA512:
        archive.unlink()
        raise MissingDependencyError(
            f"{archive.name} is not the published {PACKAGE} (its sha512 is {found[:12]}...); it was removed",
            fix=f"run again, or {_OWN}",
        )


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    """Read one file of the archive; nothing is unpacked to a disk."""
    stream = tar.extractfile(f"package/dist/{name}")
    assert stream is not None  # the archive's checksum says that it is there
    return stream.read()
