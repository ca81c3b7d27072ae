"""Every answer of the pure decision: what is known of the loss, the speed, and what the user allows."""

from __future__ import annotations

import itertools

import pytest

from qdeploy.bench import Comparison, Speed
from qdeploy.core.budget import AccuracyBudget, Flips, Shown
from qdeploy.core.intervals import PairedDifference
from qdeploy.export.verdict import Loss, Outcome, Policy, Reason, Verdict, decide, in_words

ONE = AccuracyBudget(points=1.0)
FASTER = Comparison(model="int8", against="fp32", ratio=1.5, ci95=(1.4, 1.6), finding=Speed.FASTER)
TIE = Comparison(model="int8", against="fp32", ratio=1.01, ci95=(0.99, 1.03), finding=Speed.NO_DIFFERENCE)
TEST = PairedDifference(points=-0.2, margin95=0.4, n=1000)


def loss(points: float, margin: float, n: int = 1000, flips: Flips | None = None) -> Loss:
    return Loss(difference=PairedDifference(points=0.0 - points, margin95=margin, n=n), flips=flips)


WITHIN, OVER = loss(0.4, 0.3), loss(2.0, 0.5)
UNSURE, DOUBTFUL, UNSURE_OF_NONE = loss(0.4, 1.5), loss(1.6, 1.5), loss(0.0, 1.5)
FEW_FLIPS = loss(0.4, 1.5, flips=Flips(flips=8, n=3000))


def words(verdict: Verdict, policy: Policy) -> str:
    return in_words(verdict, "INT8", "model.fp32.onnx", TEST, policy)


@pytest.mark.parametrize(
    ("measured", "shown", "plain", "strict"),
    [
        (WITHIN, Shown.WITHIN, Outcome.ACCEPTED, Outcome.ACCEPTED),
        (OVER, Shown.OVER, Outcome.REJECTED, Outcome.REJECTED),
        (UNSURE, Shown.NOT_SHOWN, Outcome.NOT_SHOWN, Outcome.REJECTED),
        (DOUBTFUL, Shown.NOT_SHOWN, Outcome.REJECTED, Outcome.REJECTED),
        (FEW_FLIPS, Shown.WITHIN, Outcome.ACCEPTED, Outcome.ACCEPTED),
    ],
    ids=["within", "over", "unsure", "doubtful", "few flips"],
)
def test_accuracy(measured: Loss, shown: Shown, plain: Outcome, strict: Outcome) -> None:
    for speed, policy in itertools.product((FASTER, None), (Policy(), Policy(strict=True))):
        verdict = decide(measured, speed, ONE, policy)
        assert verdict.shown is shown
        assert verdict.outcome is (strict if policy.strict else plain)
        assert verdict.faster is (verdict.keep and speed is FASTER)
    assert decide(measured, FASTER, ONE, Policy(allow_drop=True, strict=True)).keep


def test_what_is_not_faster_is_rejected_unless_allowed() -> None:
    verdict = decide(WITHIN, TIE, ONE, Policy())
    assert verdict.outcome is Outcome.REJECTED
    assert verdict.reasons == (Reason.NOT_FASTER,)
    assert decide(WITHIN, TIE, ONE, Policy(allow_slower=True)).outcome is Outcome.ACCEPTED
    both = decide(OVER, TIE, ONE, Policy(allow_slower=True))
    assert both.outcome is Outcome.REJECTED
    assert both.reasons == (Reason.LOSS_OVER, Reason.NOT_FASTER)


def test_what_passed_with_300_images_no_longer_does() -> None:
    """3.3 points lost at 10 % discordant pairs is not significant, and was called within a budget of 1."""
    verdict = decide(loss(3.3, 3.6, n=300), FASTER, ONE, Policy())
    assert verdict.shown is Shown.NOT_SHOWN
    assert verdict.outcome is Outcome.REJECTED


@pytest.mark.parametrize(
    ("measured", "speed", "policy", "says"),
    [
        (WITHIN, FASTER, Policy(), "INT8 accepted: -0.20 +- 0.40 points of top-1 on 1000 test images, 1.50x the speed"),
        (WITHIN, TIE, Policy(allow_slower=True), "; it is not faster, and kept as `allow_slower` asks"),
        (WITHIN, None, Policy(), "INT8 accepted: -0.20 +- 0.40 points of top-1 on 1000 test images, its speed must be"),
        (OVER, FASTER, Policy(), "INT8 REJECTED: it costs 2.00 +- 0.50 points of top-1 on the 1000 validation"),
        (OVER, TIE, Policy(), "INT8 REJECTED: it costs 2.00"),
        (
            WITHIN,
            TIE,
            Policy(),
            "INT8 REJECTED: not faster on this device; kept model.fp32.onnx; keep INT8 with `allow_slower`",
        ),
        (UNSURE, TIE, Policy(), "INT8 REJECTED: not faster on this device"),
        (OVER, FASTER, Policy(allow_drop=True), "; it loses more than is allowed, and is kept as `allow_drop` asks"),
        (OVER, TIE, Policy(allow_drop=True), "INT8 REJECTED: not faster on this device"),
        (
            UNSURE,
            FASTER,
            Policy(),
            "; NOT SHOWN: a loss of 0.40 +- 1.50 points on the 1000 validation images that the search did not",
        ),
        (UNSURE, FASTER, Policy(), "about 6250 labelled images would show it"),
        (UNSURE, FASTER, Policy(allow_drop=True, strict=True), "; NOT SHOWN: a loss of 0.40 +- 1.50 points"),
        (UNSURE, FASTER, Policy(strict=True), "INT8 REJECTED: a loss of 0.40 +- 1.50 points on the 1000 validation"),
        (DOUBTFUL, FASTER, Policy(), "INT8 REJECTED: a loss of 1.60 +- 1.50 points"),
        (UNSURE_OF_NONE, FASTER, Policy(), "; NOT SHOWN: a loss of 0.00 +- 1.50 points"),
    ],
)
def test_words(measured: Loss, speed: Comparison | None, policy: Policy, says: str) -> None:
    assert says in words(decide(measured, speed, ONE, policy), policy)


def test_a_hint_is_given_once() -> None:
    verdict = decide(OVER, FASTER, ONE, Policy())
    assert "try `qat_epochs=2`" in words(verdict, Policy())
    tuned = in_words(verdict, "INT8", "model.fp32.onnx", TEST, Policy(), final=True)
    assert "qat_epochs" not in tuned
    assert tuned.endswith("kept model.fp32.onnx; keep INT8 with `allow_drop`")


@pytest.mark.parametrize("shown", [Shown.WITHIN, Shown.NOT_SHOWN])
def test_flips_bound_the_loss_whatever_the_labels(shown: Shown) -> None:
    flips = Flips(flips=8 if shown is Shown.WITHIN else 40, n=3000)
    assert ONE.judge(loss(0.4, 1.5).difference, flips) is shown
    assert 100 * flips.flips / flips.n < flips.most_points < 100 * flips.flips / flips.n + 1


def test_no_number_of_images_shows_a_loss_that_is_over() -> None:
    assert ONE.images_needed(OVER.difference) is None
    assert ONE.images_needed(UNSURE.difference) == 6250
