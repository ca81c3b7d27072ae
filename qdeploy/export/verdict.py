"""Whether the INT8 files are kept: accuracy by paired predictions, speed by interleaved runs on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench import Comparison, compare, latency_summary, sample_images
from qdeploy.bench.launches import joined, time_launches
from qdeploy.bench.rounds import Rounds
from qdeploy.core.artifact import Artifact
from qdeploy.core.files import sha256_of
from qdeploy.core.machine import environment
from qdeploy.core.metrics import PairedDifference, Parity, paired_difference
from qdeploy.data.dataset import Split
from qdeploy.export.engines.step import EngineReport
from qdeploy.export.finish import Made, Work
from qdeploy.export.int8.layers import LayerRow, layer_table
from qdeploy.export.int8.step import Int8Made, Int8Report

REPORT_RUNS = 500
MAX_FLIPS = 24
"""Images shown whose prediction INT8 changed."""


@dataclass(frozen=True, kw_only=True)
class ArtifactReport:
    """One file that an export made."""

    path: str
    precision: str
    target: str
    engine: str
    size_bytes: int
    sha256: str
    parity: dict[str, Any]
    """Against the step before: max_abs, mean_abs, cosine, sqnr_db, top1_agreement, flips, n."""
    accuracy: dict[str, Any]
    """split, top1 and top5 in percent, n, ci95."""
    latency_ms: dict[str, float | None]
    float_layers: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One link of the chain from the trained model to a file."""

    name: str
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The whole export."""

    name: str
    out: str
    artifacts: tuple[ArtifactReport, ...]
    """The files that were kept."""
    accepted: bool
    """False if an INT8 file was made and not kept."""
    verdict: str
    recommended: str
    """Name of the file that predict and bench take: INT8 if it was measured to be faster here."""
    comparison: Comparison | None
    """Speed of this machine's INT8 against fp32."""
    difference: PairedDifference | None
    """INT8 minus fp32 accuracy on the test split, of the first INT8 file."""
    steps: tuple[dict[str, Any], ...]
    """Parity of every step, those of files that were not kept included."""
    int8: tuple[Int8Report, ...]
    layers: tuple[LayerRow, ...]
    """Of the first INT8 file."""
    engines: tuple[EngineReport, ...] = ()
    lineage: dict[str, Any]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON document of ``qdeploy export``."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A test image that INT8 classifies otherwise."""

    pixels: NDArray[np.uint8]
    """``[S, S, 3]``"""
    label: str
    fp32: str
    int8: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is written."""

    report: ExportReport
    kept: list[Made]
    flips: tuple[Flip, ...]


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """What is said of one INT8 file."""

    item: Int8Made
    comparison: Comparison | None
    difference: PairedDifference
    keep: bool
    text: str


def judge(work: Work, floats: list[Made], int8: list[Int8Made], steps: tuple[Step, ...], out: Path) -> Judged:
    """Time the files in turn, compare their predictions, and keep what pays.

    Args:
        work: The export.
        floats: The fp32 file, and others that are kept in any case.
        int8: What is judged.
        steps: Parity of the steps to the fp32 file.
        out: The export's folder.
    """
    fp32 = floats[0]
    made = [*floats, *(i.made for i in int8)]
    images = sample_images(fp32.card.preprocessing)
    launches = time_launches([Artifact(out / m.file, m.data, m.card) for m in made], images, REPORT_RUNS, seconds=60.0)
    verdicts = [
        _verdict(work, fp32, item, mine, launches[0]) for item, mine in zip(int8, launches[len(floats) :], strict=True)
    ]
    kept = [*floats, *(v.item.made for v in verdicts if v.keep)]
    first = verdicts[0] if verdicts else None
    fastest = next((v for v in verdicts if v.keep and v.comparison and v.comparison.verdict == "faster"), None)
    links = [("fp32 to fp16", m) for m in floats[1:]] + [(f"fp32 to INT8 for {i.report.target}", i.made) for i in int8]
    chain = (*steps, *(Step(name=name, parity=m.parity) for name, m in links))
    report = ExportReport(
        name=work.name,
        out=str(out),
        artifacts=tuple(_artifact(out, m, joined(t)) for m, t in zip(made, launches, strict=True) if m in kept),
        accepted=all(v.keep for v in verdicts),
        verdict="; ".join(v.text for v in verdicts) or "fp32 exported; its logits are those of the trained model",
        recommended=fastest.item.made.file if fastest else fp32.file,
        comparison=next((v.comparison for v in verdicts if v.comparison), None),
        difference=first.difference if first else None,
        steps=tuple({"step": s.name, **s.parity.to_dict()} for s in chain),
        int8=tuple(i.report for i in int8),
        layers=layer_table(fp32.model, first.item.made.model, work.parity_pixels) if first else (),
        lineage=first.item.made.card.lineage if first else fp32.card.lineage,
        environment=environment("qdeploy", "torch", "onnx", "onnxruntime", "numpy"),
    )
    flips = _flips(work.dataset.classes, work.dataset.splits["test"], fp32, first.item.made) if first else ()
    return Judged(report=report, kept=kept, flips=flips)


def _verdict(work: Work, fp32: Made, item: Int8Made, mine: list[Rounds], base: list[Rounds]) -> _Verdict:
    config, report, test = work.config, item.report, work.dataset.splits["test"]
    difference = paired_difference(item.made.test_logits, fp32.test_logits, test.labels)
    openings = [len(rounds) for rounds in base]
    comparison = compare("int8", "fp32", joined(mine), joined(base), 1, openings) if report.native else None
    val = report.val_difference
    accuracy = f"{difference.points:+.2f} +- {difference.margin95:.2f} points of top-1 on {difference.n} test images"
    too_coarse = not report.within_budget and not config.allow_drop
    slower = comparison is not None and comparison.verdict != "faster" and not config.allow_slower
    if comparison is None:
        speed = "its speed must be measured on the target"
    else:
        low, high = comparison.ci95
        speed = f"{comparison.ratio:.2f}x the speed of fp32 (95 % interval {low:.2f} to {high:.2f})"
    what = "INT8" if report.native else f"INT8 for {report.target}"
    if too_coarse:
        hint = "" if report.qat_epochs else "try `qat_epochs=2` when exporting a run, or "
        text = (
            f"{what} REJECTED: it costs {-val.points:.2f} +- {val.margin95:.2f} points of top-1 on {val.n} validation "
            f"images, at most {report.budget:.3g} allowed; kept {fp32.file}; {hint}keep INT8 with `allow_drop`"
        )
    elif slower:
        text = f"{what} REJECTED: not faster on this device, {speed}; kept {fp32.file}; keep INT8 with `allow_slower`"
    else:
        text = f"{what} accepted: {accuracy}, {speed}"
    return _Verdict(item=item, comparison=comparison, difference=difference, keep=not (too_coarse or slower), text=text)


def _artifact(out: Path, made: Made, rounds: list[list[float]]) -> ArtifactReport:
    return ArtifactReport(
        path=str(out / made.file),
        precision=made.card.precision,
        target=made.card.target,
        engine=made.session.engine,
        size_bytes=len(made.data),
        sha256=sha256_of(made.data),
        parity=made.parity.to_dict(),
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
