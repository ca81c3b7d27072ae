"""Whether answers differ: the two figures against references, and how often there is a false alarm."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from qdeploy.core.confidence import Confidence
from qdeploy.core.drift import (
    FALSE_ALARMS,
    LEAST_ANSWERS,
    DriftWatch,
    Tally,
    Verdict,
    chi_square_tail,
    grouped,
    psi,
    quantile_p,
    two_sample_p,
)
from qdeploy.core.errors import InputError
from qdeploy.core.reference import Histogram, Reference
from qdeploy.core.reliability import log_softmax, scores_of
from qdeploy.export.confidence import reference_of
from tests.core.test_reliability import some_logits

LABELS = ("a", "b", "c", "d", "e")


@dataclass(frozen=True)
class Given:
    """An answer as a caller has it."""

    energy: float | None
    probability: float
    index: int


def answers(logits: Any, temperature: float = 1.0) -> list[Given]:
    confidence = np.exp(log_softmax(logits, temperature)).max(1)
    columns = (scores_of(logits, temperature).tolist(), confidence.tolist(), logits.argmax(1).tolist())
    return [Given(*row) for row in zip(*columns, strict=True)]


def verdict_on(reference: Reference, given: list[Given]) -> Verdict:
    tally = Tally(reference)
    for answer in given:
        tally.see(answer)
    found = tally.verdict(LABELS)
    assert found is not None
    return found


def reference(logits: Any) -> Reference:
    found = reference_of(logits, 1.0)
    assert found is not None
    return found


def test_the_index_is_the_one_of_the_literature() -> None:
    plain = 0.3 * math.log(1.6) - 0.3 * math.log(0.4)  # shares of one half each against 0.8 and 0.2
    assert psi((5_000_000, 5_000_000), (8_000_000, 2_000_000)) == pytest.approx(plain, rel=1e-5)
    shares = (80.5 / 101, 20.5 / 101)  # half an answer more in each group
    by_hand = sum((q - 0.5) * math.log(q / 0.5) for q in shares)
    assert psi((50, 50), (80, 20)) == pytest.approx(by_hand)
    assert psi((80, 20), (50, 50)) == pytest.approx(by_hand)
    assert psi((10, 20, 30), (10, 20, 30)) == 0
    assert 1 < psi((0, 100), (100, 0)) < math.inf


@pytest.mark.parametrize(
    ("x", "df", "tail"),
    [
        *((3.841, 1, 0.05), (6.635, 1, 0.01), (10.828, 1, 0.001)),
        *((5.991, 2, 0.05), (9.210, 2, 0.01), (13.816, 2, 0.001)),
        *((16.919, 9, 0.05), (21.666, 9, 0.01), (27.877, 9, 0.001)),
        *((18.307, 10, 0.05), (23.209, 10, 0.01), (29.588, 10, 0.001)),
        *((123.225, 99, 0.05), (134.642, 99, 0.01), (148.230, 99, 0.001)),
        *((124.342, 100, 0.05), (135.807, 100, 0.01), (149.449, 100, 0.001)),
    ],
)
def test_the_tail_is_that_of_the_published_tables(x: float, df: int, tail: float) -> None:
    """Upper critical values of the NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4."""
    assert chi_square_tail(x, df) == pytest.approx(tail, rel=2e-3)


def test_the_tail_at_its_ends() -> None:
    assert chi_square_tail(0, 3) == chi_square_tail(-1, 4) == 1
    assert chi_square_tail(500, 2) == pytest.approx(math.exp(-250))
    assert chi_square_tail(1e6, 9) == 0
    assert chi_square_tail(1000, 1000) == pytest.approx(0.494, abs=0.001)


def test_the_p_value_is_that_of_a_permutation_test() -> None:
    rng = np.random.default_rng(0)
    for a, b in (((60, 80, 60), (85, 60, 55)), ((30, 40, 50, 80), (20, 38, 52, 40)), ((500, 500), (60, 40))):
        totals, n, m = np.add(a, b), sum(a), sum(b)
        drawn = rng.multivariate_hypergeometric(totals, m, 40_000)
        expected = totals * m / (n + m)

        def statistic(counts: Any, expected: Any = expected, share: float = n / (n + m)) -> Any:
            return (np.square(counts - expected) / (expected * share)).sum(-1)

        share = float((statistic(drawn) >= statistic(np.asarray(b)) - 1e-9).mean())
        assert two_sample_p(a, b) == pytest.approx(share, rel=0.15, abs=0.005)


@pytest.mark.parametrize(
    ("classes", "known", "n"), [(1000, 2000, 500), (300, 500, 5000), (7, 100, 100), (40, 100, 100)]
)
def test_rare_classes_are_taken_together_until_the_test_holds(classes: int, known: int, n: int) -> None:
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.full(classes, 0.3))
    a, b = rng.multinomial(known, shares).tolist(), rng.multinomial(n, shares).tolist()
    one, other = grouped(a, b)
    assert (sum(one), sum(other)) == (known, n)
    assert 2 <= len(one) <= classes
    assert all((x + y) * min(known, n) / (known + n) >= 5 for x, y in zip(one, other, strict=True))


def test_empty_groups_do_not_count() -> None:
    assert two_sample_p((30, 0, 50), (20, 0, 60)) == two_sample_p((30, 50), (20, 60))
    assert two_sample_p((30, 0), (99, 0)) == 1
    assert two_sample_p((30, 50), (30, 50)) == 1


@pytest.mark.parametrize(("classes", "known", "n"), [(5, 2000, 500), (5, 200, 100), (200, 1000, 300), (2, 5000, 200)])
def test_a_p_value_below_one_per_cent_is_as_rare_as_that(classes: int, known: int, n: int) -> None:
    """Of both samples drawn anew, without the least index that an alarm asks for, too."""
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.full(classes, 2.0))
    few = 0
    for _ in range(800):
        counts = rng.multinomial(known, shares)
        made = Reference(
            score=Histogram(edges=(), counts=(known,)),
            confidence=Histogram(edges=(), counts=(known,)),
            classes=tuple(counts.tolist()),
        )
        tally = Tally(made)
        for index in rng.choice(classes, n, p=shares).tolist():
            tally.add(0.0, 0.0, index)
        found = tally.verdict([""] * classes)
        assert found is not None
        few += found.classes.p < 0.01
    assert few <= 800 * 0.01 + 4 * math.sqrt(800 * 0.01)


def test_answers_drawn_from_the_validation_images_hardly_ever_raise_an_alarm() -> None:
    """A thousand folders of 100, where the index alone would raise one for every second."""
    val = some_logits(1000, 0)
    made, known, rng = reference(val), answers(val), np.random.default_rng(2)
    found = [verdict_on(made, [known[i] for i in rng.integers(0, 1000, 100)]) for _ in range(1000)]
    assert sum(v.differs for v in found) <= 1000 * FALSE_ALARMS + 4 * math.sqrt(1000 * FALSE_ALARMS)
    assert sum(max(part.psi for part in v.parts.values()) > 0.1 for v in found) > 300


def test_few_validation_images_do_not_raise_the_rate() -> None:
    """Their own quantiles are the edges of the groups, and another hundred would have set others."""
    alarms = 0
    for seed in range(1500):
        logits = some_logits(1100, seed)
        alarms += verdict_on(reference(logits[:100]), answers(logits[100:])).differs
    assert alarms <= 1500 * FALSE_ALARMS + 3 * math.sqrt(1500 * FALSE_ALARMS)


def test_groups_between_quantiles_are_judged_by_both_tests() -> None:
    rng = np.random.default_rng(6)
    for known, n in ((100, 100), (100, 5000), (300, 3000), (3000, 100)):
        shares = rng.dirichlet(np.full(10, known / 10), 4000)
        found = [quantile_p([known // 10] * 10, rng.multinomial(n, p).tolist()) for p in shares]
        assert sum(p < 0.01 for p in found) <= 4000 * 0.01 + 4 * math.sqrt(4000 * 0.01)
    assert quantile_p((100,), (50,)) == 1
    assert quantile_p((50, 50), (10, 190)) < 1e-6


@pytest.mark.slow
def test_a_server_that_lives_long_has_the_rate_of_one_look() -> None:
    """Each of 400 servers judges 25 windows; of them all together at most one in a hundred may raise an alarm."""
    alarmed, rng = 0, np.random.default_rng(3)
    for seed in range(400):
        if seed % 20 == 0:  # the validation images are a sample, too
            made, known = reference(some_logits(600, seed)), answers(some_logits(20_000, 1000 + seed))
        watch = DriftWatch(made, LABELS, window=100)
        for i in rng.integers(0, len(known), 2500).tolist():
            watch.see(known[i])
        assert watch.windows == 25
        alarmed += watch.alarms > 0
    assert alarmed <= 400 * FALSE_ALARMS + 4 * math.sqrt(400 * FALSE_ALARMS)


def test_without_shares_of_the_rate_many_looks_would_raise_alarms() -> None:
    """The k-th window may use 6 / (pi k)^2 of the rate, and these sum to 1."""
    val = some_logits(1000, 0)
    known, rng = answers(val), np.random.default_rng(4)
    watch = DriftWatch(reference(val), LABELS, window=100)
    used = []
    for _ in range(30):
        for i in rng.integers(0, 1000, 100).tolist():
            watch.see(known[i])
        assert watch.latest is not None
        used.append(watch.latest.false_alarms)
    assert used[0] == pytest.approx(FALSE_ALARMS * 0.6079, rel=1e-3)
    assert used[9] == pytest.approx(used[0] / 100)
    assert sum(used) < FALSE_ALARMS


@pytest.mark.parametrize(
    ("change", "part", "words"),
    [
        (lambda z: 0.3 * z, "score", "lower scores"),
        (lambda z: 0.3 * z, "confidence", "less sure"),
        (lambda z: 2.0 * z, "confidence", "surer"),
        (lambda z: z + 2.0, "score", "higher scores"),
        (lambda z: z[z.argmax(1) != 2], "classes", "other classes, first of all c, 0 % instead of "),
        (lambda z: z + np.array([3.0, 0, 0, 0, 0]), "classes", "other classes, first of all a, "),
    ],
)
def test_what_differs_is_said_in_words(change: Any, part: str, words: str) -> None:
    val = some_logits(1000, 0)
    found = verdict_on(reference(val), answers(change(some_logits(600, 7))))
    assert found.differs
    assert found.parts[part].differs
    assert found.parts[part].how.startswith(words)
    text = found.text("the 600 answers")
    assert text.startswith("the 600 answers differ from those to the validation images: ")
    assert f"{found.parts[part].how} (PSI {found.parts[part].psi:.2f})" in text
    assert found.to_dict()["differs"] is True


def test_answers_to_like_images_are_said_to_be_like_them() -> None:
    found = verdict_on(reference(some_logits(1000, 0)), answers(some_logits(600, 7)))
    assert not found.differs
    assert found.text("they").startswith("they are like those to the validation images (PSI 0.0")


def test_a_difference_too_small_to_matter_is_no_alarm() -> None:
    """Of very many answers everything is sure; what is below an index of 0.1 still is no change."""
    val = some_logits(5000, 0)
    found = verdict_on(reference(val), answers(0.93 * some_logits(20_000, 8)))
    assert found.score.p < 1e-6
    assert 0.005 < found.score.psi < 0.1
    assert not found.differs


def test_few_answers_are_not_judged() -> None:
    val = some_logits(500, 0)
    tally, given = Tally(reference(val)), answers(0.1 * some_logits(LEAST_ANSWERS, 1))
    for answer in given[:-1]:
        tally.see(answer)
    assert tally.verdict(LABELS) is None
    tally.see(replace(given[-1], energy=None))  # as of a server's answer
    assert tally.verdict(LABELS) is None
    tally.see(given[-1])
    assert tally.verdict(LABELS) is not None


def test_a_watch_alarms_recovers_and_does_not_grow() -> None:
    val = some_logits(1000, 0)
    watch, good, bad = DriftWatch(reference(val), LABELS, 200), answers(val), answers(0.2 * val)
    assert watch.text.endswith("is known after 200 of them, 0 so far")
    for answer in good[:300]:
        watch.see(answer)
    assert (watch.windows, watch.alarms, watch.to_dict()["so_far"]) == (1, 0, 100)
    assert watch.to_dict()["differs"] is False
    for answer in bad[:300]:
        watch.see(answer)
    assert (watch.windows, watch.alarms, watch.to_dict()["differs"]) == (3, 2, True)
    assert watch.text.startswith("the last 200 answers differ from those to the validation images: lower scores (PSI ")
    for answer in good[:200]:
        watch.see(answer)
    assert (watch.windows, watch.alarms, watch.to_dict()["differs"]) == (4, 2, False)
    size = len(repr(vars(watch._tally)))
    for answer in good * 5:
        watch.see(answer)
    assert abs(len(repr(vars(watch._tally))) - size) < 100


def test_rows_are_counted_as_answers_are_and_those_that_are_no_numbers_are_not() -> None:
    val = some_logits(400, 0)
    made, given = reference(val), 0.5 * some_logits(150, 5)
    one, other = DriftWatch(made, LABELS, 150), DriftWatch(made, LABELS, 150)
    for answer, logits, logs in zip(answers(given, 1.3), given.tolist(), log_softmax(given, 1.3), strict=True):
        one.see(answer)
        other.add_row([math.nan] * 5, np.exp(logs).tolist(), 1.3)
        other.add_row([math.inf, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0], 1.3)
        other.add_row(logits, np.exp(logs).tolist(), 1.3)
    assert one.latest is not None
    assert one.latest == other.latest


def test_bad_settings_are_refused() -> None:
    made = reference(some_logits(400, 0))
    with pytest.raises(InputError, match="at least 100 answers, found 99"):
        DriftWatch(made, LABELS, 99)
    for rate in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            DriftWatch(made, LABELS, false_alarms=rate)


def test_the_reference_has_groups_of_the_same_size_and_survives_json() -> None:
    made = reference(some_logits(1000, 0))
    assert len(made.score.counts) == len(made.confidence.counts) == 10
    assert all(80 <= count <= 120 for count in made.score.counts)
    assert made.n == sum(made.score.counts) == sum(made.confidence.counts) == 1000
    confidence = Confidence(images=1000, reason="why", reference=made)
    assert Confidence.from_dict(confidence.to_dict()) == confidence


def test_logits_that_are_all_equal_have_one_group_above_their_edge() -> None:
    made = reference(np.zeros((200, 5), np.float32))
    assert made.classes == (200, 0, 0, 0, 0)
    assert made.score.counts[-1] == 200
    found = verdict_on(made, answers(np.zeros((200, 5), np.float32)))
    assert not found.differs
    assert verdict_on(made, answers(some_logits(200, 1))).differs


def test_too_few_or_endless_answers_make_no_reference() -> None:
    assert reference_of(some_logits(99, 0), 1.0) is None
    bad = some_logits(200, 0)
    bad[7, 2] = np.nan
    assert reference_of(bad, 1.0) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"score": {"edges": [2.0, 1.0], "counts": [100, 100, 100]}}, "rising edges"),
        ({"score": {"edges": [1.0, math.inf], "counts": [100, 100, 100]}}, "rising edges"),
        ({"score": {"edges": [1.0], "counts": [300]}}, "one count more"),
        ({"score": {"edges": [1.0], "counts": [150, 151]}}, "of the same images"),
        ({"score": {"edges": [1.0], "counts": [-1, 301]}}, "whole numbers"),
        ({"score": {"edges": [1.0], "counts": [150.0, 150.0]}}, "whole numbers"),
        ({"classes": [300, 2**60]}, "whole numbers"),
        ({"classes": [0, 0]}, "of the same images"),
    ],
)
def test_what_is_no_reference_is_refused(change: dict[str, Any], why: str) -> None:
    good = Reference(
        score=Histogram(edges=(1.0,), counts=(150, 150)),
        confidence=Histogram(edges=(0.5, 0.9), counts=(100, 100, 100)),
        classes=(100, 200),
    ).to_dict()
    with pytest.raises(ValueError, match=why):
        Reference.from_dict({**good, **change})
