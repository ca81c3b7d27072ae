"""Everything about an artifact that can be checked again: hashes, card, lineage, goldens, and data if it is at hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.checks.origin import find_origin
from qdeploy.core.artifact import CHECKSUM_KEY, ONNX_FILES, Artifact, model_files, read_artifact
from qdeploy.core.card import Card
from qdeploy.core.engine_file import is_engine
from qdeploy.core.errors import ArtifactError, EngineError, InputError, MissingDependencyError
from qdeploy.core.files import read_json, sha256_of
from qdeploy.core.image_formats import formats_of_run
from qdeploy.core.progress import Progress
from qdeploy.core.reliability import log_softmax
from qdeploy.core.signing import require_signature, trusted_keys
from qdeploy.core.sums import SUMS, changed_files, read_sums
from qdeploy.core.words import counted
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.native.prebuilt import library_files, read_library
from qdeploy.runtime.session import Rows, engines_for, open_session
from qdeploy.runtime.trial import require_bounded

REPORT = "report.json"
TEMPERATURE_ROUNDING = 0.01
"""Largest difference of a probability that is rounding, in float16 too; another temperature moves more."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """File and subject, e.g. ``model.int8.onnx: goldens``."""
    ok: bool | None
    """None: it cannot be checked here; the detail says why."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The whole result."""

    path: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that could be checked failed."""
        return all(c.ok is not False for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``qdeploy verify``."""
        return {"path": self.path, "ok": self.ok, "checks": [asdict(c) for c in self.checks]}


def verify(
    path: Path,
    data: str | None = None,
    progress: Progress | None = None,
    *,
    keys: Sequence[Path] | None = None,
) -> Verification:
    """Check a model file, or every file of an export's folder or of a kit.

    A model file inside an export's folder is also checked against the folder's report and its parent.

    Args:
        path: The file or folder.
        data: The data set it was made with, as for ``load_dataset``; given, its hash and splits are checked too.
        progress: Called while the data set is read.
        keys: Public keys, one of which must have signed each file; by default those of ``QDEPLOY_TRUSTED_KEYS``.

    Raises:
        InputError: If it is neither a model file nor an export.
        DataError: If the data set cannot be read.
    """
    signers = trusted_keys() if keys is None else tuple(keys)
    folder = path if path.is_dir() else path.parent
    kit = path.is_dir() and (path / SUMS).exists() and not (path / REPORT).exists()
    files = sorted(path.rglob(ONNX_FILES)) if kit else model_files(path)
    checks: list[Check] = [_sums(path)] if kit else []
    artifacts: list[Artifact] = []
    for file in files:
        found = _opened(file, lone=not path.is_dir())
        checks.append(found if isinstance(found, Check) else _whole(found))
        if isinstance(found, Artifact):
            artifacts.append(found)
            if signers:
                checks.append(_signature(found, signers))
            checks += [_library(library, found, signers) for library in library_files(file)]
    if kit and not artifacts:
        if data is not None:
            raise InputError(f"{path} holds no model file, so that `data` cannot be compared", fix="leave `data` out")
        if signers:
            checks.append(Check(name=f"{SUMS}: signature", ok=False, detail="no signed model file is in this kit"))
    if not kit:
        checks += _report_checks(folder, files, required=path.is_dir())
    for artifact in artifacts:
        checks += [_card(artifact), _calibration(artifact, folder), _parent(artifact, folder), *_goldens(artifact)]
    if data is not None:
        for artifact in artifacts:
            rules = artifact.card.preprocessing.taking(formats_of_run(artifact.card.origin.training))
            checks += _data_checks(artifact, load_dataset(data, rules, progress))
    return Verification(path=str(path), checks=tuple(checks))


def _opened(file: Path, *, lone: bool) -> Artifact | Check:
    """Read a file; what qdeploy once wrote and is damaged is a failed check, anything else given alone no artifact."""
    try:
        found = read_artifact(file, trusted=())  # signatures are a check of their own
        return replace(found, library=False)
    except ArtifactError as error:
        data = file.read_bytes() if os.path.isfile(file) else b""
        if lone and CHECKSUM_KEY.encode() not in data and not is_engine(data):
            raise
        return Check(name=f"{file.name}: checksum", ok=False, detail=str(error))


def _signature(artifact: Artifact, keys: Sequence[Path]) -> Check:
    name = f"{artifact.path.name}: signature"
    try:
        return Check(name=name, ok=True, detail=f"by {require_signature(artifact.path, artifact.on_disk, keys)}")
    except ArtifactError as error:
        return Check(name=name, ok=False, detail=str(error))


def _library(file: Path, artifact: Artifact, keys: Sequence[Path]) -> Check:
    """Check a native library that lies beside a model file, for whatever CPU it is; it is not loaded."""
    name = f"{file.name}: library"
    try:
        data = read_library(file, artifact, keys)
    except ArtifactError as error:
        return Check(name=name, ok=False, detail=str(error))
    return Check(name=name, ok=True, detail=f"{len(data):,} bytes, compiled from this file{', signed' if keys else ''}")


def _whole(artifact: Artifact) -> Check:
    detail = f"{len(artifact.on_disk):,} bytes, sha256 {artifact.sha256}"
    return Check(name=f"{artifact.path.name}: checksum", ok=True, detail=detail)


def _sums(kit: Path) -> Check:
    """Compare a kit's files with its list, against accidents: whoever changes a file can change the list.

    What has been added, such as what a compiler made, is not looked at.
    """
    try:
        sums = read_sums(kit)
    except (OSError, ValueError) as error:
        return Check(name=SUMS, ok=False, detail=f"is damaged: {error}")
    if changed := changed_files(kit, sums):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return Check(name=SUMS, ok=False, detail=f"{changed[0]}{more} changed or missing since the kit was written")
    device = "; what they answer, `device` checks" if "model.c" in sums else ""
    return Check(name=SUMS, ok=True, detail=f"{counted(len(sums), 'file')} as the kit lists them{device}")


def _report_checks(folder: Path, files: list[Path], *, required: bool) -> Iterator[Check]:
    """Compare files with the report: every one is in it with its SHA-256, and none of it is missing."""
    report = folder / REPORT
    if not report.is_file():
        if required:
            yield Check(name="report.json", ok=False, detail="is missing: not a whole export")
        return
    try:
        rows = _rows(read_json(report))
    except (InputError, LookupError, TypeError, AttributeError) as error:
        yield Check(name="report.json", ok=False, detail=f"is damaged: {error}")
        return
    for file in files:
        name = f"{file.name}: report.json"
        if file.name not in rows:
            yield Check(name=name, ok=False, detail="the report does not know this file")
            continue
        same = sha256_of(file.read_bytes()) == rows[file.name]
        text = (
            "sha256 as reported" if same else f"sha256 is not the reported {rows[file.name]}: another or changed file"
        )
        yield Check(name=name, ok=same, detail=text)
    for missing in sorted(set(rows) - {f.name for f in folder.iterdir()}):
        yield Check(name=f"{missing}: report.json", ok=False, detail="is in the report and missing")


def _rows(report: Any) -> dict[str, str]:
    """Return the SHA-256 of each reported file by its name."""
    reported = [*report["artifacts"], *report.get("engines", ())]
    return {str(row["path"]).replace("\\", "/").rpartition("/")[2]: row["sha256"] for row in reported}


def _card(artifact: Artifact) -> Check:
    """Check what must agree within a card; reading it has checked schema, fields and the hash of the preprocessing."""
    card = artifact.card
    wrong = []
    if len(set(card.labels)) < len(card.labels) or not card.labels:
        wrong.append("its labels are not all different")
    for key, says, found in (
        ("num_classes", card.model.num_classes, len(card.labels)),
        ("input_size", card.model.input_size, card.preprocessing.size),
    ):
        if says != found:
            wrong.append(f"{key} is {says}, found {found}")
    if artifact.engine and artifact.engine.precision != card.precision:
        wrong.append(f"the engine is {artifact.engine.precision}, its card says {card.precision}")
    rules = card.preprocessing.to_dict()["sha256"][:12]
    detail = "; ".join(wrong) or f"{len(card.labels)} labels, preprocessing {rules}"
    return Check(name=f"{artifact.path.name}: card", ok=not wrong, detail=detail)


def _calibration(artifact: Artifact, folder: Path) -> Check:
    """Check that INT8 was calibrated on real images, the ones that calibration.json lists."""
    name = f"{artifact.path.name}: calibration"
    record = artifact.card.calibration
    if artifact.card.precision != "int8":
        return Check(name=name, ok=True, detail=f"{artifact.card.precision} needs none")
    if record is None:
        return Check(name=name, ok=False, detail="the card of this INT8 file does not say how it was calibrated")
    if record.random:
        return Check(
            name=name, ok=False, detail="its ranges come from RANDOM inputs, so its accuracy is not that of real use"
        )
    if not (folder / "calibration.json").is_file():
        return Check(
            name=name, ok=None, detail=f"{len(record.images)} real images; no calibration.json beside it to compare"
        )
    try:
        listed = read_json(folder / "calibration.json")
        images, digest = list(listed["images"]), listed["images_sha256"]
        same = hashlib.sha256("\n".join(sorted(images)).encode()).hexdigest() == digest
    except (InputError, LookupError, TypeError) as error:
        return Check(name=name, ok=False, detail=f"calibration.json is damaged: {error}")
    if not same:
        return Check(name=name, ok=False, detail="calibration.json is damaged: its images have another hash")
    if sorted(record.images) != sorted(images):
        return Check(name=name, ok=False, detail="calibration.json lists other images than the card")
    return Check(name=name, ok=True, detail=f"{len(images)} images, as in calibration.json ({digest[:12]})")


def _parent(artifact: Artifact, folder: Path) -> Check:
    """Look for the file or the run's weights that an artifact was made from, by its SHA-256."""
    name = f"{artifact.path.name}: parent"
    parent = artifact.engine.source_sha256 if artifact.engine else artifact.card.origin.parent_sha256
    if len(parent) != 64:
        return Check(name=name, ok=False, detail="the card does not name what it was made from")
    if artifact.engine is None and artifact.card.precision == "fp32":
        ok, detail = find_origin(artifact.card)
        return Check(name=name, ok=ok, detail=detail)
    for file in sorted(folder.glob(ONNX_FILES)):
        if file.name != artifact.path.name and _made_from(artifact.card, parent, file):
            return Check(name=name, ok=True, detail=f"made from {file.name}")
    if (folder / "report.json").is_file():
        return Check(name=name, ok=False, detail=f"no file in {folder} is its parent {parent[:12]}")
    return Check(name=name, ok=None, detail=f"its parent {parent[:12]} is not here")


def _made_from(card: Card, parent: str, file: Path) -> bool:
    """Tell whether a file is the parent, or the same model that says it was before `qdeploy calibrate`."""
    try:
        other = read_artifact(file, trusted=())
    except ArtifactError:  # of any tool, or damaged, which its own check tells
        return sha256_of(file.read_bytes()) == parent
    return other.sha256 == parent or (parent in other.known_as and other.card.model == card.model)


def _goldens(artifact: Artifact) -> list[Check]:
    """Run the goldens with the first engine that opens such files here, and see that the card's temperature acts."""
    name = f"{artifact.path.name}: goldens"
    goldens = artifact.card.goldens
    reasons = []
    for engine in engines_for(artifact):
        try:
            require_bounded(artifact)
            with open_session(artifact, engine, selftest=False) as session:
                rows, probabilities = session.infer_bytes(goldens.pixels, len(goldens.rows))
                found, what = goldens.sqnr_db(rows), session.engine
        except MissingDependencyError as error:
            reasons.append(str(error))
            continue
        except (ArtifactError, EngineError) as error:
            return [Check(name=name, ok=False, detail=str(error))]
        exact = "the same numbers" if np.isinf(found) else f"{found:.1f} dB"
        detail = f"{exact} on {len(goldens.rows)} images with {what}, at least {goldens.min_sqnr_db:.0f} dB needed"
        good = Check(name=name, ok=found >= goldens.min_sqnr_db, detail=detail)
        return [good, _temperature(artifact, rows, probabilities)]
    return [Check(name=name, ok=None, detail=reasons[0] if reasons else "no engine of this version opens it")]


def _temperature(artifact: Artifact, logits: Rows, probabilities: Rows) -> Check:
    """Check that the probabilities are the softmax of the logits at the temperature of the card."""
    temperature = artifact.card.temperature
    expected = np.exp(log_softmax(np.asarray(logits, np.float32), temperature))
    off = float(np.abs(expected - np.asarray(probabilities)).max(initial=0.0))
    name, least = f"{artifact.path.name}: confidence", TEMPERATURE_ROUNDING
    detail = f"probabilities are those of temperature {temperature:.4g}"
    if not off <= least:
        detail = f"probabilities differ by {off:.2g} from those of temperature {temperature:.4g}, which the card names"
    return Check(name=name, ok=off <= least, detail=detail)


def _data_checks(artifact: Artifact, dataset: Dataset) -> Iterator[Check]:
    """Compare with the data set: its content, the labels, and that no image calibrated and measured."""
    file, card = artifact.path.name, artifact.card
    trained = card.origin.dataset
    same = dataset.sha256 == trained.sha256
    detail = f"{dataset.name} {dataset.sha256[:12]}" + (
        "" if same else f" is not the data set of the card, {trained.name} {trained.sha256[:12]}"
    )
    yield Check(name=f"{file}: data", ok=same, detail=detail)
    ordered = dataset.classes == card.labels
    yield Check(
        name=f"{file}: labels",
        ok=ordered,
        detail="those of the data set, in its order" if ordered else "are not the classes of the data set",
    )
    if card.calibration:
        images = card.calibration.images
        measured = {h for split in ("val", "test") for h in dataset.splits[split].hashes}
        shared = len(measured & set(images))
        detail = f"{shared} of {len(images)} calibration images are validation or test images"
        yield Check(name=f"{file}: calibration apart from evaluation", ok=shared == 0, detail=detail)
