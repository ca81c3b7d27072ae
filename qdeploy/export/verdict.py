"""Whether an INT8 file is kept: a pure decision from what was measured, and its words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qdeploy.bench import Comparison, Speed
from qdeploy.core.budget import AccuracyBudget, Flips, Shown
from qdeploy.core.intervals import PairedDifference
from qdeploy.core.words import rounded
from qdeploy.export.stress import Stress


class Outcome(str, Enum):
    """What is done with a file."""

    ACCEPTED = "accepted"
    NOT_SHOWN = "not shown"
    """Kept with a warning: its loss is within the budget by the estimate, but too few images show it."""
    REJECTED = "rejected"


class Reason(str, Enum):
    """Why a file is not simply accepted."""

    LOSS_OVER = "it loses more accuracy than allowed"
    LOSS_NOT_SHOWN = "its loss is not shown to be within what is allowed"
    NOT_FINITE = "its answer to an image of the stress set is not finite"
    STRESSED = "it answers an image of the stress set with no regard to fp32"
    NOT_FASTER = "it is not faster than fp32 on this device"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is known of the accuracy of an INT8 file against fp32."""

    difference: PairedDifference
    """Top-1 of INT8 minus that of fp32 on validation images that took no part in any choice."""
    flips: Flips | None
    """Flips over all images that took no part in calibration; None where the difference alone was enough."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the user allows."""

    strict: bool = False
    """Reject what is not shown to be within the budget."""
    allow_drop: bool = False
    """Keep a file whatever it loses, as long as its answers are numbers."""
    allow_slower: bool = False
    """Keep a file that is not faster than fp32."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is decided of one INT8 file."""

    outcome: Outcome
    reasons: tuple[Reason, ...]
    shown: Shown
    loss: Loss
    budget: AccuracyBudget
    speed: Comparison | None
    """Speed against fp32; None if this machine does not run the file's target."""
    not_finite: tuple[str, ...] = ()
    """Images of the stress set whose answer is no number."""
    stressed: tuple[str, ...] = ()
    """Images of the stress set that are answered with no regard to fp32."""

    @property
    def keep(self) -> bool:
        """Whether the file is written."""
        return self.outcome is not Outcome.REJECTED

    @property
    def faster(self) -> bool:
        """Whether it is kept and was measured to be faster than fp32."""
        return self.keep and self.speed is not None and self.speed.finding is Speed.FASTER


def decide(
    loss: Loss, speed: Comparison | None, budget: AccuracyBudget, policy: Policy, stress: Stress | None = None
) -> Verdict:
    """Decide what is done with an INT8 file.

    Args:
        loss: Loss of accuracy against fp32.
        speed: Speed against fp32, measured side by side; None where it could not be measured.
        budget: What may be lost.
        policy: What the user allows in any case; answers that are not finite are never allowed.
        stress: Answers to the stress set.
    """
    not_finite, stressed = (stress.not_finite, stress.broken) if stress else ((), ())
    shown = budget.judge(loss.difference, loss.flips)
    reasons = []
    if shown is Shown.OVER:
        reasons.append(Reason.LOSS_OVER)
    elif shown is Shown.NOT_SHOWN:
        reasons.append(Reason.LOSS_NOT_SHOWN)
    if not_finite:
        reasons.append(Reason.NOT_FINITE)
    if stressed:
        reasons.append(Reason.STRESSED)
    tolerable = budget.tolerates(loss.difference, loss.flips, strict=policy.strict)
    slower = speed is not None and speed.finding is not Speed.FASTER
    if slower:
        reasons.append(Reason.NOT_FASTER)
    lossy = (not tolerable or bool(stressed)) and not policy.allow_drop
    rejected = bool(not_finite) or lossy or (slower and not policy.allow_slower)
    unsure = shown is Shown.NOT_SHOWN
    outcome = Outcome.REJECTED if rejected else Outcome.NOT_SHOWN if unsure else Outcome.ACCEPTED
    return Verdict(
        outcome=outcome,
        reasons=tuple(reasons),
        shown=shown,
        loss=loss,
        budget=budget,
        speed=speed,
        not_finite=not_finite,
        stressed=stressed,
    )


def in_words(
    verdict: Verdict,
    what: str,
    kept: str,
    test: PairedDifference,
    policy: Policy,
    *,
    final: bool = False,
    p50_ms: tuple[float, float] | None = None,
) -> str:
    """Return a verdict as one line.

    Args:
        verdict: What was decided.
        what: The file, ``INT8`` say.
        kept: Name of the file that is kept where this one is not.
        test: INT8 minus fp32 accuracy on the test split.
        policy: What the user allows.
        final: Whether its weights were fine-tuned for INT8 already, or cannot be: they come from a file.
        p50_ms: Median latencies of one image of the file and of fp32, of the same launches as ``verdict.speed``.
    """
    speed = _speed_words(verdict.speed)
    if verdict.outcome is not Outcome.REJECTED:
        accuracy = f"{rounded(test.points, 2, '+')} +- {test.margin95:.2f} points of top-1 on {test.n} test images"
        doubt = f"; NOT SHOWN: {_not_shown_words(verdict)}" if verdict.outcome is Outcome.NOT_SHOWN else ""
        slow = "" if verdict.faster or verdict.speed is None else "; it is not faster, and kept as `allow_slower` asks"
        over = verdict.shown is Shown.OVER or verdict.stressed
        lossy = "; it loses more than is allowed, and is kept as `allow_drop` asks" if over else ""
        return f"{what} accepted: {accuracy}, {speed}{slow}{lossy}{doubt}"
    if verdict.not_finite:
        return f"{what} REJECTED: its answer is not finite for {_images(verdict.not_finite)}; kept {kept}"
    loss, flips = verdict.loss.difference, verdict.loss.flips
    if verdict.stressed and not policy.allow_drop and verdict.budget.tolerates(loss, flips, strict=policy.strict):
        return (
            f"{what} REJECTED: it answers otherwise than fp32, where that is sure or gives no number, for "
            f"{_images(verdict.stressed)}; kept {kept}; keep INT8 with `allow_drop`"
        )
    if policy.allow_drop or verdict.budget.tolerates(loss, flips, strict=policy.strict):
        return (
            f"{what} REJECTED: not faster on this device; kept {kept}; keep INT8 with `allow_slower`; measured: {speed}"
            f"{_slower_words(p50_ms)}"
        )
    hint = "" if final else "try `qat_epochs=2` when exporting a run, or "
    cost = (
        f"it costs {rounded(-loss.points, 2)} +- {loss.margin95:.2f} points of top-1 on the {loss.n} validation images "
        f"that the search did not see, at most {verdict.budget.points:.3g} allowed"
        if verdict.shown is Shown.OVER
        else _not_shown_words(verdict)
    )
    return f"{what} REJECTED: {cost}; kept {kept}; {hint}keep INT8 with `allow_drop`"


def _images(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 1} more of the stress set" if len(names) > 1 else ""
    return f"the image '{names[0]}'{more}"


def _speed_words(speed: Comparison | None) -> str:
    if speed is None:
        return "its speed must be measured on the target"
    low, high = speed.ci95
    return f"{speed.ratio:.2f}x the speed of fp32 (95 % interval {low:.2f} to {high:.2f})"


def _slower_words(p50_ms: tuple[float, float] | None) -> str:
    """Say how long both take, and why a file is no faster whose parts are."""
    if p50_ms is None:
        return ""
    return (
        f", {p50_ms[0]:.3f} ms an image in INT8 and {p50_ms[1]:.3f} ms in fp32; why: wherever INT8 and float layers "
        "meet, values are converted, and layers that fp32 computes in one step take several, which can cost more than "
        "the INT8 layers save"
    )


def _not_shown_words(verdict: Verdict) -> str:
    loss, flips = verdict.loss.difference, verdict.loss.flips
    needed = verdict.budget.images_needed(loss)
    more = f"; about {needed} labelled images would show it" if needed else ""
    other = f", {flips.flips} of {flips.n} predictions changed on all images that did not calibrate" if flips else ""
    return (
        f"a loss of {rounded(-loss.points, 2)} +- {loss.margin95:.2f} points on the {loss.n} validation images that "
        f"the search did not see{other}: too few to tell whether it is within {verdict.budget.points:.3g}{more}"
    )
