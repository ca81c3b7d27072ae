"""The INT8 step: calibrate once, try which layers to leave in float, keep the fastest sound graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qdeploy.core.errors import VerdictError
from qdeploy.core.files import sha256_of
from qdeploy.core.metrics import topk_percent
from qdeploy.export.calibrate import Calibration, calibrate, choose_images
from qdeploy.export.made import Made, Work, finish
from qdeploy.export.parity import INT8_MIN_SQNR_DB, require_sound, run_session
from qdeploy.export.quantize import encoding_for, quantize
from qdeploy.runtime.bench import compare, sample_images, time_rounds

CALIBRATION_SEED = 0
INT8_GOLDEN_DB = 20.0
"""Wide enough for another CPU's rounding, far above what saturating 8-bit kernels give."""

FLOAT_GROUPS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "stem": ("stem",),
    "stem, attention": ("stem", "fusion.attention"),
    "stem, attention, gates": ("stem", "fusion.attention", ".excite"),
}
"""Parts of node names that INT8 may leave in float; the fastest sound set is taken, by measurement."""
FLOAT_FOR_TENSORRT = "stem, attention"
"""Not timed here: the speed of ONNX Runtime says nothing about TensorRT."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One choice of layers left in float, as measured on this machine."""

    float_layers: str
    sqnr_db: float
    times_fp32_speed: float | None
    """None if it was not timed."""
    ci95: tuple[float, float] | None
    chosen: bool


def int8_step(work: Work, fp32: Made) -> tuple[Made, Calibration, tuple[Candidate, ...]]:
    """Make the INT8 graph of a float one.

    Raises:
        VerdictError: If it is broken or costs more accuracy than allowed.
    """
    dataset, config = work.dataset, work.config
    images = choose_images(dataset.splits["train"], config.calibration_images, len(dataset.classes), CALIBRATION_SEED)
    calibration = calibrate(fp32.model, images, CALIBRATION_SEED)
    work.note(f"calibrated on {len(images)} training images")
    made = _quantized_graphs(work, fp32, calibration)
    int8, candidates = _fastest(work, fp32, made) if config.target == "x86" else _only(made)
    require_sound("fp32 to INT8", int8.parity)
    _require_accuracy(work, fp32, int8)
    work.note(f"int8: {int8.parity.sqnr_db:.1f} dB, top-1 agrees on {int8.parity.top1_agreement:.1%} of images")
    return int8, calibration, candidates


def _quantized_graphs(work: Work, fp32: Made, calibration: Calibration) -> list[Made]:
    encoding = encoding_for(work.config.target)
    timed = encoding.target == "x86"
    lineage = {
        **fp32.card.lineage,
        "parent_sha256": sha256_of(fp32.data),
        "calibration": {"method": "minmax", "images": list(calibration.image_hashes), "seed": calibration.seed},
    }
    made = []
    for name in FLOAT_GROUPS if timed else (FLOAT_FOR_TENSORRT,):
        layers = tuple(n.name for n in fp32.model.graph.node if any(p in n.name for p in FLOAT_GROUPS[name]))
        card = replace(fp32.card, precision="int8", target=encoding.target, float_layers=layers, lineage=lineage)
        graph = quantize(fp32.model, calibration, encoding, layers)
        file = "model.int8.onnx" if timed else f"model.int8.{encoding.target}.onnx"
        made.append(finish(work, graph, card, fp32.parity_logits, file, INT8_GOLDEN_DB, float_layers=name))
    return made


def _fastest(work: Work, fp32: Made, made: list[Made]) -> tuple[Made, tuple[Candidate, ...]]:
    images = sample_images(work.dataset.preprocessing)
    sessions = [m.session for m in (fp32, *made)]
    rounds = time_rounds(sessions, [images] * len(sessions), work.config.choice_runs, seconds=60.0)
    speeds = [compare(m.float_layers, "fp32", r, rounds[0]) for m, r in zip(made, rounds[1:], strict=True)]

    def rank(i: int) -> tuple[bool, float]:
        return made[i].parity.sqnr_db >= INT8_MIN_SQNR_DB, speeds[i].ratio

    best = max(range(len(made)), key=rank)
    candidates = tuple(
        Candidate(
            float_layers=m.float_layers,
            sqnr_db=m.parity.sqnr_db,
            times_fp32_speed=s.ratio,
            ci95=s.ci95,
            chosen=m is made[best],
        )
        for m, s in zip(made, speeds, strict=True)
    )
    return made[best], candidates


def _only(made: list[Made]) -> tuple[Made, tuple[Candidate, ...]]:
    (one,) = made
    candidate = Candidate(
        float_layers=one.float_layers, sqnr_db=one.parity.sqnr_db, times_fp32_speed=None, ci95=None, chosen=True
    )
    return one, (candidate,)


def _require_accuracy(work: Work, fp32: Made, int8: Made) -> None:
    val = work.dataset.splits["val"]
    before, after = (topk_percent(run_session(m.session, val.pixels), val.labels, 1) for m in (fp32, int8))
    if before - after > work.config.max_drop:
        raise VerdictError(
            f"INT8 REJECTED: it costs {before - after:.2f} points of top-1 on {len(val)} validation images, at most "
            f"{work.config.max_drop:g} allowed; export without --int8, or raise --max-drop"
        )
