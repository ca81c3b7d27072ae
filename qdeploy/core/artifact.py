"""One model file: its checksum and its bytes, read without any machine-learning library.

The card (JSON) and the checksum are two entries of the ONNX file's ``metadata_props``. The checksum is the
SHA-256 of the whole file with the checksum's own 64 digits set to ``0``: one file is complete by itself, and
damage is found before a runtime sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qdeploy.core.card import Card
from qdeploy.core.encryption import Key, decrypted, is_encrypted
from qdeploy.core.engine_file import EngineHeader, is_engine, unpack
from qdeploy.core.errors import ArtifactError, NoCardError
from qdeploy.core.file_kind import kind_of
from qdeploy.core.files import newest, sha256_of
from qdeploy.core.json_text import parse_json
from qdeploy.core.onnx_bytes import Entry, has_external_data, metadata_entries
from qdeploy.core.signing import require_signature, trusted_keys
from qdeploy.core.whole import is_special

CARD_KEY = "qdeploy"
CHECKSUM_KEY = "qdeploy_sha256"
BLANK = "0" * 64
IR_VERSION = b"\x08"
"""First byte of every ONNX file that a tool wrote."""
EXPORTS = Path("exports")
ONNX_FILES = "model*.onnx"
ENGINE_FILES = "model*.engine"
SHIPPED = Path(__file__).parents[1] / "shipped"
"""The small pretrained model inside the package: an export's folder."""


@dataclass(frozen=True)
class Artifact:
    """A model file in memory; its checksum has been verified."""

    path: Path
    data: bytes = field(repr=False)
    card: Card = field(repr=False)
    engine: EngineHeader | None = field(default=None, repr=False)
    """Header of an engine file; None for an ONNX file."""
    foreign: bool = False
    """Whether it came from a file: what it computes is not known until it is tried (``runtime.trial``)."""
    stored: bytes | None = field(default=None, repr=False)
    """The file's bytes where it is encrypted; ``data`` is what they hold."""
    keys: tuple[Path, ...] = ()
    """Public keys of which one must have signed it, and a compiled library beside it."""
    library: bool = True
    """Whether a library beside it, which is a program, may be loaded where no key must have signed it."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file as it is on disk."""
        return sha256_of(self.on_disk)

    @property
    def on_disk(self) -> bytes:
        """The file's bytes."""
        return self.data if self.stored is None else self.stored

    def require_plain(self, what: str) -> None:
        """Refuse what would write an encrypted file's contents to a disk.

        Args:
            what: What it is, as the subject of a sentence.

        Raises:
            ArtifactError: If the file is encrypted.
        """
        if self.stored is not None:
            raise ArtifactError(
                f"{self.path} is encrypted, and {what} would write what it holds to the disk",
                fix="give the file that it was made of",
            )

    @property
    def known_as(self) -> tuple[str, ...]:
        """The hashes by which what was made from the file names it: its own, and that before it was calibrated anew."""
        before = self.card.confidence.before_sha256 if self.card.confidence else None
        return (self.sha256,) if before is None else (self.sha256, before)


def read_artifact(path: Path, *, trusted: Sequence[Path] | None = None, key: Key | None = None) -> Artifact:
    """Read a model file, ONNX or engine, once, verify its checksum and parse its card.

    Args:
        path: The file.
        trusted: Public keys, one of which must have signed the file; none: any file will do. By default those that
            ``QDEPLOY_TRUSTED_KEYS`` names.
        key: The key of an encrypted file, or what gives it; by default that of ``QDEPLOY_MODEL_KEY_COMMAND`` or
            ``QDEPLOY_MODEL_KEY``.

    Raises:
        ArtifactError: If it is missing, damaged, not written by qdeploy, not signed where it has to be, or encrypted
            with another key.
        InputError: If it is encrypted and there is no key.
    """
    if is_special(path):  # /dev/zero has no end, and a pipe may have no writer
        raise ArtifactError(f"the model file {path} is a device or pipe; give a regular file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the model file {path} cannot be read: {error.strerror}") from error
    if keys := tuple(trusted_keys() if trusted is None else trusted):
        require_signature(path, data, keys)
    if is_encrypted(data):
        return replace(_parsed(path, decrypted(path, data, key)), stored=data, keys=keys)
    return replace(_parsed(path, data), keys=keys)


def _parsed(path: Path, data: bytes) -> Artifact:
    return _engine_artifact(path, data) if is_engine(data) else _onnx_artifact(path, data)


def _engine_artifact(path: Path, data: bytes) -> Artifact:
    try:
        header, _ = unpack(data)
        return Artifact(path, data, Card.from_dict(header.card), header)
    except (ArtifactError, ValueError) as error:
        raise ArtifactError(f"{path} {error}") from error


def _onnx_artifact(path: Path, data: bytes) -> Artifact:
    try:
        entries = {e.key: e for e in metadata_entries(data)}
        external = has_external_data(data)
    except (IndexError, ValueError, UnicodeDecodeError, RecursionError) as error:
        if kind := kind_of(data):
            raise ArtifactError(f"{path} is {kind[0]}; {kind[1]}") from error
        raise ArtifactError(f"{path} is not an ONNX file or engine, or is damaged; export it again") from error
    if CARD_KEY not in entries or CHECKSUM_KEY not in entries:
        if not data.startswith(IR_VERSION) and (kind := kind_of(data)):
            raise ArtifactError(f"{path} is {kind[0]}; {kind[1]}")
        raise NoCardError(
            f"{path} has no qdeploy card; give a file written by `qdeploy export`, or make one of this file with "
            "`qdeploy adopt` or `qdeploy quantize`"
        )
    checksum = entries[CHECKSUM_KEY]
    if sha256_of(_blanked(data, checksum)) != checksum.value:
        raise ArtifactError(f"{path} is damaged: its checksum does not match its contents; export or copy it again")
    if external:
        raise ArtifactError(f"{path} keeps weights in another file, which no checksum covers; export it as one file")
    try:
        return Artifact(path, data, Card.from_dict(parse_json(entries[CARD_KEY].value)), foreign=True)
    except ArtifactError as error:
        raise ArtifactError(f"{path} {error}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} has an unusable card: {error}") from error


def sealed(data: bytes) -> bytes:
    """Put the checksum into the bytes of a model whose checksum entry is ``BLANK``."""
    entry = next(e for e in metadata_entries(data) if e.key == CHECKSUM_KEY)
    blank = _blanked(data, entry)
    return blank[: entry.start] + sha256_of(blank).encode() + blank[entry.start + len(BLANK) :]


def model_files(path: Path, patterns: Sequence[str] = (ONNX_FILES, ENGINE_FILES)) -> list[Path]:
    """List an export folder's model files, by pattern and name; of a file's path, the file.

    Raises:
        ArtifactError: If the folder holds none.
    """
    files = [f for pattern in patterns for f in sorted(path.glob(pattern))] if path.is_dir() else [path]
    if not files:
        raise ArtifactError(f"{path} holds no model file", fix=instead_of(path))
    return files


def instead_of(folder: Path) -> str:
    """Return what to do with a folder that was given as a model and is none."""
    if (folder / "run.json").is_file():
        return f"it is a run: `qdeploy export {folder}` makes one of it"
    return "give a model file, or a folder that `qdeploy export` wrote"


def newest_export() -> Path | None:
    """Find the most recent export's folder below ``./exports``, or None."""
    report = newest(EXPORTS, "*/report.json")
    return report.parent if report else None


def _blanked(data: bytes, checksum: Entry) -> bytes:
    return data[: checksum.start] + BLANK.encode() + data[checksum.start + len(BLANK) :]
