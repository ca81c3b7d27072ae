"""Times an export's files in turn, has each INT8 file judged, and sums everything up in the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdeploy.bench import compare, latency_summary, sample_images
from qdeploy.bench.launches import joined, time_launches
from qdeploy.core.artifact import Artifact
from qdeploy.core.files import sha256_of
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.machine import environment
from qdeploy.data.dataset import Split
from qdeploy.export.finish import Made, Work
from qdeploy.export.int8.layers import layer_table
from qdeploy.export.int8.step import Int8Made
from qdeploy.export.report.record import ArtifactReport, ExportReport, Flip, Step
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
    fp32, policy = floats[0], work.config.policy
    made = [*floats, *(i.made for i in int8)]
    images = sample_images(fp32.card.preprocessing)
    launches = time_launches([Artifact(out / m.file, m.data, m.card) for m in made], images, REPORT_RUNS, seconds=60.0)
    base, openings = joined(launches[0]), [len(rounds) for rounds in launches[0]]
    verdicts, texts = [], []
    for item, mine in zip(int8, launches[len(floats) :], strict=True):
        speed = compare("int8", "fp32", joined(mine), base, 1, openings) if item.report.native else None
        verdict = decide(item.report.loss, speed, item.report.budget, policy)
        what = "INT8" if item.report.native else f"INT8 for {item.report.target}"
        finetuned = item.report.qat_epochs > 0
        texts.append(in_words(verdict, what, fp32.file, _against(item.made), policy, finetuned=finetuned))
        verdicts.append(verdict)
    judged = list(zip(int8, verdicts, strict=True))
    kept = [*floats, *(i.made for i, v in judged if v.keep)]
    first = int8[0].made if int8 else None
    links = [("fp32 to fp16", m) for m in floats[1:]] + [(f"fp32 to INT8 for {i.report.target}", i.made) for i in int8]
    report = ExportReport(
        name=work.name,
        out=str(out),
        artifacts=tuple(_artifact(out, m, joined(t)) for m, t in zip(made, launches, strict=True) if m in kept),
        accepted=all(v.keep for v in verdicts),
        verdict="; ".join(texts) or "fp32 exported; its logits are those of the trained model",
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
    flips = _flips(work.dataset.classes, work.dataset.splits["test"], fp32, first) if first else ()
    return Judged(report=report, kept=kept, flips=flips)


def _against(made: Made) -> PairedDifference:
    assert made.card.accuracy is not None
    assert made.card.accuracy.against_fp32 is not None
    return made.card.accuracy.against_fp32


def _artifact(out: Path, made: Made, rounds: list[list[float]]) -> ArtifactReport:
    assert made.card.accuracy is not None
    return ArtifactReport(
        path=str(out / made.file),
        precision=made.card.precision,
        target=made.card.target,
        engine=made.session.engine,
        size_bytes=len(made.data),
        sha256=sha256_of(made.data),
        parity=made.parity,
        accuracy=made.card.accuracy,
        latency_ms=latency_summary([t for block in rounds for t in block]),
        float_layers=made.float_layers,
    )


def _flips(classes: tuple[str, ...], test: Split, fp32: Made, int8: Made) -> tuple[Flip, ...]:
    before, after = fp32.test_logits.argmax(1), int8.test_logits.argmax(1)
    return tuple(
        Flip(
            pixels=test.pixels[i],
            label=classes[int(test.labels[i])],
            fp32=classes[int(before[i])],
            int8=classes[int(after[i])],
        )
        for i in np.flatnonzero(before != after)[:MAX_FLIPS]
    )
