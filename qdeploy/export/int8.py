"""The INT8 step: calibrate once, try which layers to leave in float, keep the fastest sound graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx

from qdeploy.core.artifact import Card
from qdeploy.core.errors import VerdictError
from qdeploy.core.files import sha256_of
from qdeploy.core.metrics import PairedDifference, paired_difference
from qdeploy.export.calibrate import Calibration, calibrate, choose_images
from qdeploy.export.made import Made, Work, finish, open_graph
from qdeploy.export.parity import INT8_MIN_SQNR_DB, Parity, measure, require_sound, run_session
from qdeploy.export.quantize import encoding_for, quantize
from qdeploy.runtime.bench import compare, sample_images, time_rounds
from qdeploy.runtime.session import Session

CALIBRATION_SEED = 0
INT8_GOLDEN_DB = 20.0
"""Wide enough for another CPU's rounding, far above what saturating 8-bit kernels give."""

FLOAT_GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "qonstraint": {
        "nothing": (),
        "stem": ("stem",),
        "stem, attention": ("stem", "fusion.attention"),
        "stem, attention, head": ("stem", "fusion.attention", "head"),
        "stem, attention, gates, head": ("stem", "fusion.attention", ".excite", "head"),
    },
    "mobilevit": {
        "nothing": (),
        "stem": (".stem",),
        "stem, attention": (".stem", ".attention"),
        "transformers": (".layers",),
        "stem, transformers": (".stem", ".layers"),
    },
}
"""Parts of node names that INT8 may leave in float, per family; the fastest sound set is taken, by measurement."""
FLOAT_FOR_TENSORRT = "stem, attention"
"""Not timed here: the speed of ONNX Runtime says nothing about TensorRT."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One choice of layers left in float, as measured on this machine."""

    float_layers: str
    sqnr_db: float
    val_drop: float
    """Points of validation top-1 that it costs."""
    times_fp32_speed: float | None
    """None if it was not timed."""
    ci95: tuple[float, float] | None
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A quantized graph, opened and compared with fp32, not yet measured on the test split."""

    float_layers: str
    model: onnx.ModelProto
    card: Card
    session: Session
    parity: Parity
    difference: PairedDifference
    """Its validation accuracy minus that of fp32."""

    def costs_more_than(self, points: float) -> bool:
        """Tell whether the loss exceeds a budget and is more than noise: on 12 images one is 8 points."""
        loss = -self.difference.points
        return loss > points and loss > self.difference.margin95


def int8_step(work: Work, fp32: Made) -> tuple[Made, Calibration, tuple[Candidate, ...]]:
    """Make the INT8 graph of a float one.

    Raises:
        VerdictError: If it is broken or costs more accuracy than allowed.
    """
    dataset, config = work.dataset, work.config
    images = choose_images(dataset.splits["train"], config.calibration_images, len(dataset.classes), CALIBRATION_SEED)
    calibration = calibrate(fp32.model, images, CALIBRATION_SEED)
    work.note(f"calibrated on {len(images)} training images")
    trials = _trials(work, fp32, calibration)
    chosen, candidates = _fastest(work, fp32, trials) if config.target == "x86" else _only(trials)
    require_sound("fp32 to INT8", chosen.parity)
    if chosen.costs_more_than(config.max_drop):
        d = chosen.difference
        raise VerdictError(
            f"INT8 REJECTED: it costs {-d.points:.2f} +- {d.margin95:.2f} points of top-1 on {d.n} validation images, "
            f"at most {config.max_drop:g} allowed; export without --int8, or raise --max-drop"
        )
    file = "model.int8.onnx" if config.target == "x86" else f"model.int8.{config.target}.onnx"
    int8 = finish(work, chosen.model, chosen.card, fp32.parity_logits, file, INT8_GOLDEN_DB, chosen.float_layers)
    work.note(f"int8: {int8.parity.sqnr_db:.1f} dB, top-1 agrees on {int8.parity.top1_agreement:.1%} of images")
    return int8, calibration, candidates


def float_groups(model: onnx.ModelProto, family: str) -> dict[str, tuple[str, ...]]:
    """Give, for each set of layers that may stay in float, the names of its nodes."""
    names = [n.name for n in model.graph.node]
    if family in FLOAT_GROUPS:
        groups = FLOAT_GROUPS[family]
        return {group: tuple(n for n in names if any(p in n for p in parts)) for group, parts in groups.items()}
    layers = [n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    if not layers:
        return {"nothing": ()}
    return {"nothing": (), "first layer": (layers[0],), "first and last layer": (layers[0], layers[-1])}


def _trials(work: Work, fp32: Made, calibration: Calibration) -> list[_Trial]:
    encoding = encoding_for(work.config.target)
    lineage = {
        **fp32.card.lineage,
        "parent_sha256": sha256_of(fp32.data),
        "calibration": {"method": "minmax", "images": list(calibration.image_hashes), "seed": calibration.seed},
    }
    val = work.dataset.splits["val"]
    before = run_session(fp32.session, val.pixels)
    groups = float_groups(fp32.model, work.record["model"]["family"])
    if encoding.target != "x86":
        only = FLOAT_FOR_TENSORRT if FLOAT_FOR_TENSORRT in groups else "nothing"
        groups = {only: groups[only]}
    trials = []
    for name, layers in groups.items():
        card = replace(fp32.card, precision="int8", target=encoding.target, float_layers=layers, lineage=lineage)
        model = quantize(fp32.model, calibration, encoding, layers)
        session = open_graph(model, card)
        logits = run_session(session, val.pixels)
        trials.append(
            _Trial(
                float_layers=name,
                model=model,
                card=card,
                session=session,
                parity=measure(fp32.parity_logits, logits[: len(fp32.parity_logits)]),
                difference=paired_difference(logits, before, val.labels),
            )
        )
    return trials


def _fastest(work: Work, fp32: Made, trials: list[_Trial]) -> tuple[_Trial, tuple[Candidate, ...]]:
    images = sample_images(work.dataset.preprocessing)
    sessions = [fp32.session, *(t.session for t in trials)]
    rounds = time_rounds(sessions, [images] * len(sessions), work.config.choice_runs, seconds=60.0)
    speeds = [compare(t.float_layers, "fp32", r, rounds[0]) for t, r in zip(trials, rounds[1:], strict=True)]

    def rank(i: int) -> tuple[bool, bool, float]:
        t = trials[i]
        return t.parity.sqnr_db >= INT8_MIN_SQNR_DB, not t.costs_more_than(work.config.max_drop), speeds[i].ratio

    best = max(range(len(trials)), key=rank)
    candidates = tuple(
        Candidate(
            float_layers=t.float_layers,
            sqnr_db=t.parity.sqnr_db,
            val_drop=-t.difference.points,
            times_fp32_speed=s.ratio,
            ci95=s.ci95,
            chosen=i == best,
        )
        for i, (t, s) in enumerate(zip(trials, speeds, strict=True))
    )
    return trials[best], candidates


def _only(trials: list[_Trial]) -> tuple[_Trial, tuple[Candidate, ...]]:
    (one,) = trials
    candidate = Candidate(
        float_layers=one.float_layers,
        sqnr_db=one.parity.sqnr_db,
        val_drop=-one.difference.points,
        times_fp32_speed=None,
        ci95=None,
        chosen=True,
    )
    return one, (candidate,)
