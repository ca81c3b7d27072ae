"""Temperature and threshold of a model file that exists: its weights stay, bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.confidence import Confidence
from qdeploy.core.errors import ArtifactError, DataError, InputError
from qdeploy.core.files import read_json, sha256_of, write_bytes, write_json
from qdeploy.core.html import join, tag
from qdeploy.core.image_formats import formats_of_run
from qdeploy.core.progress import Note, StepProgress, no_progress, silent
from qdeploy.core.whole import require_place
from qdeploy.data.labelled import LabelledImages, labelled_images
from qdeploy.export.confidence import (
    LEAST_IMAGES,
    Diagram,
    Labelled,
    confidence_of,
    most_images,
    require_coverage,
    require_threshold_images,
)
from qdeploy.export.graph.parity import RUN_BATCH
from qdeploy.export.graph.seal import sealed_bytes
from qdeploy.export.graph.temperature import with_temperature
from qdeploy.export.report.confidence import confidence_section
from qdeploy.export.report.page import MEASURED_ON
from qdeploy.runtime.session import Session, open_session


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """What `qdeploy calibrate` found and wrote."""

    path: str
    sha256: str
    data: str
    confidence: Confidence
    diagram: Diagram | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `qdeploy calibrate`."""
        return asdict(self)


def recalibrate(
    file: Path,
    data: str,
    *,
    coverage: float | None = None,
    out: Path | None = None,
    note: Note = silent,
    progress: StepProgress = no_progress,
) -> Recalibration:
    """Fit a file's temperature and threshold on a data set's validation images, and measure them on its test images.

    Logits and classes stay what they are. In an export's folder the report is brought up to date.

    Args:
        file: An ONNX file of qdeploy, of any precision.
        data: A data set as ``qdeploy train`` takes it, with all of the file's labels.
        coverage: Share of the validation images that keep their label; None takes the threshold away.
        out: Where it is written; by default the file itself is replaced.
        note: Called with what the user should know of the data.
        progress: Takes a step's name, and returns what is called with the number of its parts that are done and their
            total.

    Raises:
        ArtifactError: If it is no such file.
        InputError: If coverage, images or answers allow no calibration.
    """
    require_coverage(coverage)
    artifact = read_artifact(file)
    artifact.require_plain("a calibration")
    if artifact.engine is not None:
        raise ArtifactError(
            f"{file} is an engine file, whose graph is fixed", fix="calibrate the ONNX file it was built from"
        )
    require_place(out or file)
    card = artifact.card
    with open_session(artifact) as session:
        val = _answers(session, artifact, data, "val", note, progress, most_images(coverage))
        _require_images(val, card.labels, coverage)
        test = _answers(session, artifact, data, "test", note, progress)
    confidence, diagram = confidence_of(val, test, card.labels, coverage)
    before = card.confidence.before_sha256 if card.confidence else None
    confidence = replace(confidence, before_sha256=before or artifact.sha256)
    graph = with_temperature(onnx.load_from_string(artifact.data), confidence.temperature)
    made = sealed_bytes(graph, replace(card, confidence=confidence))
    write_bytes(out or file, made)
    report = Recalibration(
        path=str(out or file), sha256=sha256_of(made), data=data, confidence=confidence, diagram=diagram
    )
    _amend_report(out or file, artifact.sha256, len(made), report)
    return report


def _answers(
    session: Session,
    artifact: Artifact,
    data: str,
    split: str,
    note: Note,
    progress: StepProgress,
    most: int | None = None,
) -> Labelled:
    """Run a split's images; of more than ``most`` batches with so many."""
    card, told = artifact.card, progress(f"{split} images")
    rules = card.preprocessing.taking(formats_of_run(card.origin.training))  # others would be cut into other splits
    images = labelled_images(data, split, rules, card.labels, told)
    for text in images.notes if split == "val" else ():
        note(text)
    logits, labels = [], []
    for i, batch in enumerate(images.batches(RUN_BATCH)):
        if most is None or _is_drawn(i, images, most):
            logits.append(session.infer(batch.pixels)[0])
            labels.append(batch.labels)
            told(len(labels) * RUN_BATCH, min(most or images.count, images.count))
    if not logits:
        raise DataError(f"{images.name} has no usable image in {images.split}")
    return Labelled(logits=np.concatenate(logits), labels=np.concatenate(labels))


def _is_drawn(place: int, images: LabelledImages, most: int) -> bool:
    """Tell whether a batch is run: as many as hold so many images, evenly spread over the split."""
    batches = -(-images.count // RUN_BATCH)
    drawn = min(batches, -(-most // RUN_BATCH) + 1)  # the last may be a part of one
    return (place + 1) * drawn // batches > place * drawn // batches


def _require_images(val: Labelled, labels: tuple[str, ...], coverage: float | None) -> None:
    """Check that the validation images are enough for what was asked for.

    Raises:
        InputError: If there are too few, or a label has none.
    """
    require_coverage(coverage)
    if len(val.labels) < LEAST_IMAGES:
        raise InputError(
            f"a temperature takes {LEAST_IMAGES} validation images", found=len(val.labels), fix="give more images"
        )
    require_threshold_images(val.labels, labels, coverage)
    if missing := [name for k, name in enumerate(labels) if not (val.labels == k).any()]:
        raise InputError(
            f"the class '{missing[0]}' has no validation images, so that nothing is known of its probabilities",
            fix="give images of every class",
        )
    if not np.isfinite(val.logits).all():
        raise InputError(
            "the answer to a validation image is not finite", fix="compare with its fp32 file, or export it again"
        )


def _amend_report(file: Path, former_sha256: str, size_bytes: int, made: Recalibration) -> None:
    """Bring the report of an export's folder up to date, if the file is in it."""
    path = file.parent / "report.json"
    if not path.is_file():
        return
    report = read_json(path)
    rows = [r for r in report.get("artifacts", ()) if str(r["path"]).replace("\\", "/").rpartition("/")[2] == file.name]
    if not rows:
        return
    news = {"sha256": made.sha256, "size_bytes": size_bytes}
    former = join(confidence_section(report["artifacts"]))
    for row in rows:
        row.update(news, confidence=made.confidence.to_dict(), diagram=made.diagram and asdict(made.diagram))
    write_json(path, report)
    page = file.parent / "report.html"
    if page.is_file():
        text = page.read_text(encoding="utf-8").replace(former_sha256, made.sha256)
        shown, rest = join(confidence_section(report["artifacts"])), tag("h2", MEASURED_ON)
        text = text.replace(former, shown) if former else text.replace(rest, shown + rest)
        write_bytes(page, text.encode())
