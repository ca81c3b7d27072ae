"""Times an export's files in turn, has each INT8 file judged, and sums everything up in the report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qdeploy.bench import compare, latency_summary, sample_images
from qdeploy.bench.fresh import Fresh
from qdeploy.bench.launches import joined, time_launches
from qdeploy.bench.rounds import Rounds
from qdeploy.checks.explain import Explainer, common_scale, pictures
from qdeploy.core.artifact import Artifact
from qdeploy.core.card import ONNX_FAMILY
from qdeploy.core.cautions import cautions
from qdeploy.core.errors import QdeployError
from qdeploy.core.files import sha256_of
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.machine import compute_threads, environment
from qdeploy.core.metrics import confusion_of, macro_scores
from qdeploy.core.progress import Note
from qdeploy.data.dataset import Split
from qdeploy.export.finish import Made, Work
from qdeploy.export.int8.layers import layer_table
from qdeploy.export.int8.step import Int8Made
from qdeploy.export.report.record import ArtifactReport, Confusion, ExportReport, Flip, Step
from qdeploy.export.verdict import decide, in_words

REPORT_RUNS = 500
MAX_FLIPS = 24
"""Images shown whose prediction INT8 changed."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is written."""

    report: ExportReport
    kept: list[Made]
    flips: tuple[Flip, ...]
    confusion: Confusion | None
    """None where there are no test images."""


def measure_and_judge(
    work: Work, floats: list[Made], int8: Sequence[Int8Made], steps: Sequence[Step], out: Path
) -> Judged:
    """Time the files in turn, decide which INT8 files are kept, and make the report.

    Args:
        work: The export.
        floats: The fp32 file, and others that are kept in any case.
        int8: What is judged.
        steps: Parity of the steps to the fp32 file.
        out: The export's folder.
    """
    fp32, policy, test = floats[0], work.config.policy, work.dataset.splits["test"]
    made = [*floats, *(i.made for i in int8)]
    images = sample_images(fp32.card.preprocessing)
    launches = time_launches([Artifact(out / m.file, m.data, m.card) for m in made], images, REPORT_RUNS, seconds=60.0)
    base, openings = joined(launches[0]), [len(rounds) for rounds in launches[0]]
    verdicts, texts = [], []
    for item, mine in zip(int8, launches[len(floats) :], strict=True):
        speed = compare("int8", "fp32", joined(mine), base, 1, openings) if item.report.native else None
        verdict = decide(item.report.loss, speed, item.report.budget, policy, item.report.stress)
        what = "INT8" if item.report.native else f"INT8 for {item.report.target}"
        final = item.report.qat_epochs > 0 or fp32.card.model.family == ONNX_FAMILY
        p50_ms = (_median(joined(mine)), _median(base)) if item.report.native else None
        texts.append(in_words(verdict, what, fp32.file, _against(item.made), policy, final=final, p50_ms=p50_ms))
        verdicts.append(verdict)
    judged = list(zip(int8, verdicts, strict=True))
    kept = [*floats, *(i.made for i, v in judged if v.keep)]
    timed = zip(int8, verdicts, launches[len(floats) :], strict=True)
    first = int8[0].made if int8 else None
    links = [("fp32 to fp16", m) for m in floats[1:]] + [(f"fp32 to INT8 for {i.report.target}", i.made) for i in int8]
    report = ExportReport(
        name=work.name,
        out=str(out),
        artifacts=tuple(_artifact(out, m, t, test) for m, t in zip(made, launches, strict=True) if m in kept),
        rejected=tuple(_artifact(out, i.made, t, test) for i, v, t in timed if not v.keep),
        accepted=all(v.keep for v in verdicts),
        verdict="; ".join(texts) or f"fp32 exported; its logits are those of {steps[0].step.partition(' to ')[0]}",
        verdicts=tuple(verdicts),
        recommended=next((i.made.file for i, v in judged if v.faster), fp32.file),
        comparison=next((v.speed for v in verdicts if v.speed), None),
        difference=_against(first) if first else None,
        steps=(*steps, *(Step(step=name, parity=m.parity) for name, m in links)),
        int8=tuple(i.report for i in int8),
        layers=layer_table(fp32.model, first.model, work.parity_pixels) if first else (),
        origin=(first or fp32).card.origin,
        calibration=(first or fp32).card.calibration,
        environment=environment("qdeploy", "torch", "onnx", "onnxruntime", "numpy"),
    )
    flips = _flips(work.dataset.classes, test, fp32, first) if first else ()
    confusion = None if work.dataset.generated else _confusion(work.dataset.classes, test, fp32, first)
    for text in _cautions(confusion, report.difference, work.config.max_drop):
        work.note(f"note: {text}")
    return Judged(report=report, kept=kept, flips=flips, confusion=confusion)


def with_memory(report: ExportReport, folder: Path, note: Note) -> ExportReport:
    """Add to each file of this CPU what a fresh process with it takes.

    Args:
        report: The export's report.
        folder: Where its files lie for now.
        note: Told where no process could be measured; the export goes on without.
    """
    here = {"float", *(i.target for i in report.int8 if i.native)}

    def with_peak(a: ArtifactReport) -> ArtifactReport:
        if a.target not in here:
            return a
        fresh = Fresh(path=folder / Path(a.path).name, engine="ort", threads=1, batch=1, quick=True)
        try:
            return replace(a, peak_rss_bytes=int(fresh.probe()["peak_rss_bytes"]))
        except QdeployError as error:
            note(f"no peak memory of {Path(a.path).name}: {error}")
            return a

    with ThreadPoolExecutor(compute_threads()) as pool:
        return replace(report, artifacts=tuple(pool.map(with_peak, report.artifacts)))


def _median(rounds: Rounds) -> float:
    return float(median(t for block in rounds for t in block))


def _cautions(confusion: Confusion | None, difference: PairedDifference | None, budget: float) -> list[str]:
    """Return what is to be said of the accuracies on the test split; nothing where there are no labelled images.

    INT8 is compared with fp32 image by image, which tells more than two accuracies: where that suffices, their own
    interval is no matter.
    """
    if confusion is None:
        return []
    found = cautions(confusion.labels, confusion.fp32.tolist(), split="test")
    if difference and difference.margin95 > budget:
        found.append(
            f"{difference.n} test images give the loss of INT8 to +- {difference.margin95:.2f} points, which is more "
            f"than the {budget:g} allowed"
        )
    return found


def _against(made: Made) -> PairedDifference:
    assert made.card.accuracy is not None
    assert made.card.accuracy.against_fp32 is not None
    return made.card.accuracy.against_fp32


def _artifact(out: Path, made: Made, launches: Sequence[Rounds], test: Split) -> ArtifactReport:
    return ArtifactReport(
        path=str(out / made.file),
        precision=made.card.precision,
        target=made.card.target,
        engine=made.session.engine,
        size_bytes=len(made.data),
        sha256=sha256_of(made.data),
        parity=made.parity,
        accuracy=made.card.accuracy,
        macro=macro_scores(confusion_of(made.test_logits, test.labels)) if made.card.accuracy else None,
        latency_ms=latency_summary([t for block in joined(launches) for t in block]),
        launches_p50_ms=tuple(median(t for block in rounds for t in block) for rounds in launches),
        peak_rss_bytes=None,
        float_layers=made.float_layers,
        confidence=made.card.confidence,
        diagram=made.diagram,
    )


def _flips(classes: tuple[str, ...], test: Split, fp32: Made, int8: Made) -> tuple[Flip, ...]:
    before, after = fp32.test_logits.argmax(1), int8.test_logits.argmax(1)
    changed = np.flatnonzero(before != after)[:MAX_FLIPS]
    return tuple(
        Flip(
            pixels=test.pixels[i],
            label=classes[int(test.labels[i])],
            fp32=classes[int(before[i])],
            int8=classes[int(after[i])],
            looks=looks,
        )
        for i, looks in zip(changed, _looks((fp32, int8), test.pixels[changed]), strict=True)
    )


def _looks(files: Sequence[Made], pixels_NHWC: NDArray[np.uint8]) -> list[tuple[tuple[str, Image.Image], ...]]:
    """Return for each image where each file finds its answer; nothing where one has nothing to show."""
    try:
        explainers = [Explainer(Artifact(Path(m.file), m.data, m.card)) for m in files]
        found = [[e(image) for e in explainers] for image in pixels_NHWC]
    except QdeployError:
        return [() for _ in pixels_NHWC]
    return [
        tuple((f"{e.precision}: {caption}", shown) for e in row for caption, shown in pictures(e, common_scale(row)))
        for row in found
    ]


def _confusion(classes: tuple[str, ...], test: Split, fp32: Made, int8: Made | None) -> Confusion | None:
    if not len(test.labels):
        return None
    counts = [confusion_of(made.test_logits, test.labels) for made in (fp32, int8) if made]
    return Confusion(labels=classes, fp32=counts[0], int8=counts[1] if int8 else None)
