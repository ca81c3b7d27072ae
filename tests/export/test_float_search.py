"""The float search on a real trained model: what it measures, what it leaves in float, and what it repairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qdeploy.bench import sample_images
from qdeploy.core.artifact import read_artifact
from qdeploy.core.budget import AccuracyBudget
from qdeploy.core.errors import InputError
from qdeploy.core.machine import saturates
from qdeploy.core.metrics import label_ranks
from qdeploy.data.catalog import load_dataset
from qdeploy.export.finish import open_graph
from qdeploy.export.graph.parity import run_outputs, run_session
from qdeploy.export.int8.calibrate import calibrate, choose_images
from qdeploy.export.int8.choices import Choices
from qdeploy.export.int8.clock import Clock, FloatNodes, Timing, real_clock, times_of, timing_of
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.float_choice import SearchConfig
from qdeploy.export.int8.float_search import FloatSearch
from qdeploy.export.int8.loss import flips_of
from qdeploy.export.int8.units import MAX_MODULES, MAX_ROLES, disjoint, nodes_of, quantizable, units_of
from qdeploy.runtime.classifier import Prediction
from qdeploy.runtime.session import open_session

X86 = encoding_for("x86-avx2" if saturates("x86") else "x86")
"""What this CPU computes exactly: sums that overflow cost accuracy, which is not the subject here."""
MakeSearch = Callable[..., FloatSearch]
FEW = SearchConfig(modules=10, roles=1, runs=10)
"""Where it is not the number of parts that is tested."""


@pytest.fixture(scope="module")
def fp32(fp32_file: Path) -> onnx.ModelProto:
    return onnx.load(str(fp32_file))


@pytest.fixture(scope="module")
def make(fp32_file: Path) -> MakeSearch:
    dataset = load_dataset()
    card = read_artifact(fp32_file).card
    val = dataset.splits["val"].take(np.arange(200))

    def search(model: onnx.ModelProto, **fields: Any) -> FloatSearch:
        calibration = calibrate(model, choose_images(dataset, 64, 0), 0)
        encoding = fields.pop("encoding", X86)
        ranges = calibration.ranges("minmax")
        return FloatSearch(
            choices=Choices(model=model, card=card, encoding=encoding, ranges=ranges, biases={}),
            images=val,
            before=run_session(open_graph(model, card), val.pixels),
            **{
                "budget": AccuracyBudget(points=1.0),
                "clock": None,
                "config": SearchConfig(runs=10),
                "note": lambda _: None,
                "progress": lambda done, total: None,
                **fields,
            },
        )

    return search


def rules() -> FloatSearch:
    """Return a search whose rules are asked about times alone: nothing is opened."""
    nothing: Any = None
    return FloatSearch(
        choices=nothing, images=nothing, before=nothing,
        budget=AccuracyBudget(points=1.0), clock=None, config=SearchConfig(), note=lambda _: None,
        progress=lambda done, total: None,
    )  # fmt: skip


def told(cost: Callable[[FloatNodes | None], float]) -> Clock:
    """Return a clock that says what each choice costs."""
    return lambda choices, sessions, runs, seconds: [cost(nodes) for nodes in choices]


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e-9])
def test_a_clock_without_time_runs_the_fewest_rounds(fp32_file: Path, seconds: float) -> None:
    artifact = read_artifact(fp32_file)
    with open_session(artifact, threads=1) as session:
        clock = real_clock(sample_images(artifact.card.preprocessing))
        (ms,) = clock([None], [session], 35, seconds)
    assert 0 < ms < 1000


def test_units_are_modules_from_the_outside_in_and_roles(fp32: onnx.ModelProto) -> None:
    units = {u.name: u for u in units_of(fp32, X86)}
    assert {"stem", "stages", "fusion", "fusion.attention", "head", "*.excite"} <= set(units)
    assert len(units) <= MAX_MODULES + MAX_ROLES
    names = {n.name for n in fp32.graph.node}
    assert all(u.nodes <= names for u in units.values())
    assert units["stem"].nodes == {n.name for n in fp32.graph.node if n.name.startswith("stem.")}
    assert units["fusion.attention"].nodes < units["fusion"].nodes
    assert len(units["*.excite"].nodes & units["stages"].nodes) == len(units["*.excite"].nodes)
    whole, inner, other = units["fusion"], units["fusion.attention"], units["stem"]
    assert disjoint([inner, whole, other]) == [inner, other]
    assert nodes_of([inner, other]) == inner.nodes | other.nodes


def test_a_module_without_names_is_split_into_its_layers() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    net (float[1, 4] x, float[4, 4] a) => (float[1, 4] z) { y = MatMul (x, a) \n z = MatMul (y, a) }
    """
    graph = onnx.parser.parse_model(text)
    for i, node in enumerate(graph.graph.node):
        node.name = f"model/MatMul_{i}"
    assert [u.name for u in units_of(graph, X86)] == ["model/MatMul_0", "model/MatMul_1"]


@pytest.fixture(scope="module")
def every(fp32: onnx.ModelProto) -> FloatNodes:
    return quantizable(fp32, X86)


def slow_parts(every: FloatNodes, parts: dict[str, float]) -> Callable[[FloatNodes | None], float]:
    """Return the milliseconds where integers are slow in some parts by so much, and fast elsewhere; fp32 takes 40."""
    members = {part: frozenset(n for n in every if n.startswith(part)) for part in parts}
    others = every - frozenset().union(*members.values())

    def cost(nodes: FloatNodes | None) -> float:
        if nodes is None:
            return 40.0
        slow = sum(ms * len(members[p] - nodes) / len(members[p]) for p, ms in parts.items())
        return 10.0 + slow + 0.2 * len(nodes & others)

    return cost


def test_what_is_slow_on_integers_is_left_in_float(fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes) -> None:
    cost = slow_parts(every, {"stem.": 3.0, "fusion.attention": 2.0})
    found = make(fp32, clock=told(cost)).search()
    assert found.float_units == ("stem", "fusion.attention")
    chosen = next(c for c in found.choices if c.chosen)
    assert chosen.times_fp32_speed == pytest.approx(4.0)
    gains = {u.unit: u.time_gain for u in found.units}
    assert gains["stem"] == pytest.approx(12 / 15 - 1)
    assert gains["stages"] is not None
    assert gains["stages"] > 0


@pytest.mark.slow
def test_what_saves_less_than_is_worth_the_while_stays_in_int8(
    fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes
) -> None:
    found = make(fp32, clock=told(slow_parts(every, {"stem.": 3.0, "fusion.attention": 0.1}))).search()
    assert found.float_units == ("stem",)
    found = make(
        fp32, clock=told(slow_parts(every, {"stem.": 3.0, "fusion.attention": 0.1})), config=SearchConfig(worth=0.005)
    ).search()
    assert found.float_units == ("stem", "fusion.attention")


def test_of_parts_that_the_clock_cannot_tell_apart_the_simplest_is_taken(
    fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes
) -> None:
    """The whole fusion block saves a little more than its attention, by less than can be told."""
    attention = frozenset(n for n in every if n.startswith("fusion.attention"))
    fusion = frozenset(n for n in every if n.startswith("fusion."))

    def cost(nodes: FloatNodes | None) -> float:
        if nodes is None:
            return 40.0
        return 10.0 - 0.95 * (attention <= nodes) - 0.1 * (fusion <= nodes) + 0.2 * len(nodes - fusion)

    assert make(fp32, clock=told(cost)).search().float_units == ("fusion.attention",)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.005, 0.02])
def test_ten_searches_with_a_noisy_clock_find_the_same(
    spread: float, fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes
) -> None:
    """Every opening of a file is off by a part of a per cent or more, as real ones are."""
    cost = slow_parts(every, {"stem.": 3.0, "fusion.attention": 1.2})
    chosen = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)

        def noisy(nodes: FloatNodes | None, rng: np.random.Generator = rng) -> float:
            return cost(nodes) * float(np.exp(rng.normal(0, spread)))

        search = make(fp32, clock=told(noisy), config=SearchConfig(modules=8, roles=1))
        chosen.add(search.search().float_units)
    assert chosen == {("stem", "fusion.attention")}


def test_where_integers_are_slow_the_search_begins_from_float(
    fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes
) -> None:
    """The stem alone is faster in INT8, and anything in INT8 beside it makes the whole slow."""
    stem = frozenset(n for n in every if n.startswith("stem."))

    def cost(nodes: FloatNodes | None) -> float:
        return 40.0 if nodes in (None, every) else 32.0 if every - (nodes or every) == stem else 45.0

    found = make(fp32, clock=told(cost)).search()
    assert found.float_units == ("all but stem",)
    assert set(found.float_nodes) == every - stem
    assert next(c for c in found.choices if c.chosen).times_fp32_speed == pytest.approx(40 / 32)


def test_what_has_nothing_in_int8_is_no_int8(fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes) -> None:
    """Every layer is slower in INT8, so that all of them in float would be the fastest."""
    cost = told(lambda nodes: 40.0 if nodes is None else 40.0 + len(every - nodes))
    found = make(fp32, clock=cost).search()
    assert any(n.op_type == "QuantizeLinear" for n in found.model.graph.node)
    assert all(math.isfinite(c.sqnr_db) for c in found.choices)


@pytest.mark.slow
def test_the_real_clock_orders_what_it_times(fp32: onnx.ModelProto, make: MakeSearch, fp32_file: Path) -> None:
    images = sample_images(read_artifact(fp32_file).card.preprocessing)
    found = make(fp32, clock=real_clock(images), config=FEW).search()
    gains = {u.unit: u.time_gain for u in found.units}
    assert gains["stages"] is not None
    assert gains["stages"] > max(g for u, g in gains.items() if u.startswith("head") and g is not None)
    assert sum(c.chosen for c in found.choices) == 1
    assert any(c.times_fp32_speed for c in found.choices)


class Hours:
    """A time of day that goes on by so much with every timing and every graph in it, and a clock for what is told."""

    def __init__(self, cost: Callable[[FloatNodes | None], float], timing: float = 0.0, graph: float = 0.0) -> None:
        self.cost, self.timing, self.graph, self.seconds = cost, timing, graph, 0.0

    def now(self) -> float:
        return self.seconds

    def clock(self, choices: Sequence[FloatNodes | None], *_: object) -> list[float]:
        self.seconds += self.timing + self.graph * len(choices)
        return [self.cost(nodes) for nodes in choices]


@pytest.mark.parametrize(
    ("seconds", "units"), [(15.0, ()), (45.0, ()), (65.0, ("stem",)), (200.0, ("stem", "fusion.attention"))]
)
def test_when_the_time_is_up_the_best_so_far_is_taken(
    seconds: float, units: tuple[str, ...], fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes
) -> None:
    notes: list[str] = []
    hours = Hours(slow_parts(every, {"stem.": 3.0, "fusion.attention": 2.0}), timing=10.0)
    config = SearchConfig(seconds=seconds)
    found = make(fp32, clock=hours.clock, now=hours.now, config=config, note=notes.append).search()
    assert found.float_units == units
    assert hours.seconds <= seconds + 10.0
    stopped = f"float search: stopped after {seconds:g} s; the best choice so far is taken"
    assert (notes[-1] == stopped) is (seconds < 200.0)
    assert any("no time for" in note for note in notes) is (seconds < 40.0)


@pytest.mark.parametrize("timings", [0, 4])
def test_an_interrupt_takes_the_best_so_far(
    timings: int, fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes
) -> None:
    """The user presses Ctrl-C during the survey, or once the stem is in float."""
    notes: list[str] = []
    cost = slow_parts(every, {"stem.": 3.0, "fusion.attention": 2.0})
    left = iter(range(timings))

    def clock(choices: Sequence[FloatNodes | None], *_: object) -> list[float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return [cost(nodes) for nodes in choices]

    found = make(fp32, clock=clock, config=SearchConfig(modules=10, roles=1), note=notes.append).search()
    assert found.float_units == (() if timings == 0 else ("stem",))
    assert "interrupted; the best choice so far is taken" in notes[-1]


def test_the_forecast_is_corrected_as_the_search_goes(
    fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes
) -> None:
    """Each graph is timed for ten seconds, which the first graph's runs do not let expect."""
    ticks: list[tuple[int, int]] = []
    hours = Hours(slow_parts(every, {"stem.": 3.0, "fusion.attention": 2.0}), graph=10.0)
    progress = lambda done, total: ticks.append((done, total))  # noqa: E731
    make(fp32, clock=hours.clock, now=hours.now, progress=progress, config=SearchConfig(seconds=5000)).search()
    assert all(done <= total for done, total in ticks)
    assert ticks[0][1] <= 1
    for done, total in ticks:
        if done >= 100:
            assert hours.seconds / 2 <= total <= hours.seconds * 2, done


def with_an_outlier(model: onnx.ModelProto, layer: str, factor: float) -> onnx.ModelProto:
    """Give a graph whose values are the same, and whose one channel behind a layer is hugely scaled."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (first,) = [n for n in copy.graph.node if n.name == layer]
    weights = {i.name: i for i in copy.graph.initializer}
    (last,) = [n for n in copy.graph.node if n.op_type == "Conv" and n.input[0] == first.output[0]]
    scaled = [(name, 0, factor) for name in first.input[1:]]
    for name, axis, by in [*scaled, (last.input[1], 1, 1 / factor)]:
        values = numpy_helper.to_array(weights[name]).copy()
        np.moveaxis(values, axis, 0)[0] *= by
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    return copy


def test_what_costs_accuracy_is_found_by_bisection_and_left_in_float(fp32: onnx.ModelProto, make: MakeSearch) -> None:
    pairs = {n.output[0]: n.name for n in fp32.graph.node if n.op_type == "Conv"}
    readers = [n for n in fp32.graph.node if n.op_type == "Conv" and n.input[0] in pairs]
    layer = next(pairs[n.input[0]] for n in readers if next(a.i for a in n.attribute if a.name == "group") == 1)
    broken = with_an_outlier(fp32, layer, 3000.0)
    found = make(broken).search()
    whole = found.choices[0]
    assert whole.float_units == ()
    assert whole.val_drop > 5
    assert layer in found.float_nodes
    assert next(c for c in found.choices if c.chosen).val_drop <= 1.0
    assert len(found.choices) <= 2 + np.ceil(np.log2(MAX_MODULES + MAX_ROLES))
    assert all(t.times_fp32_speed is None for t in found.choices)
    culprit = max(found.units, key=lambda u: u.error)
    assert culprit.error > 0.5


def test_what_must_stay_in_float_does(fp32: onnx.ModelProto, make: MakeSearch) -> None:
    start = frozenset(n.name for n in fp32.graph.node if n.name.startswith("stem."))
    found = make(fp32, config=FEW).search(start)
    assert start <= set(found.float_nodes)
    assert not {u.unit for u in found.units} & {"stem", "stem.0"}


def test_noise_is_twice_the_standard_error_of_a_ratio() -> None:
    """Openings that scatter by a known share: the estimate is two of the ratio's standard errors."""
    rng = np.random.default_rng(0)
    found, ratios = [], []
    for _ in range(400):
        whole = rng.normal(0, 0.2, (3, 1))  # an opening may be slower as a whole
        timing = timing_of(np.exp(whole + rng.normal(0, 0.02, (3, 7))).tolist())
        found.append(timing.noise)
        ratios += list(np.log(np.asarray(timing.ms[1:]) / timing.ms[0]))
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(2 * np.std(ratios), rel=0.05)
    assert timing_of([[1.0, 2.0]]).noise == 0.0
    assert timing_of([[1.0], [2.0]]).noise == 0.0


def test_a_ratio_lies_within_the_margin_of_two_openings_in_19_of_20_cases() -> None:
    rng = np.random.default_rng(0)
    timings = [timing_of(np.exp(rng.normal(0, 0.02, (2, 2))).tolist()) for _ in range(1000)]
    inside = [abs(math.log(t.ms[1] / t.ms[0])) <= t.margin for t in timings]
    assert 0.93 <= np.mean(inside) <= 0.97
    assert np.mean([abs(math.log(t.ms[1] / t.ms[0])) <= t.noise for t in timings]) < 0.8


def test_what_is_clear_is_not_timed_again(fp32: onnx.ModelProto, make: MakeSearch, every: FloatNodes) -> None:
    """A clock that scatters by 2 % tells at once that the stem saves a quarter, and the head nothing to speak of."""
    rng = np.random.default_rng(0)
    cost = slow_parts(every, {"stem.": 10.0})
    calls: list[int] = []

    def noisy(choices: Sequence[FloatNodes | None], *_: object) -> list[float]:
        calls.append(len(choices))
        return [cost(nodes) * float(np.exp(rng.normal(0, 0.02))) for nodes in choices]

    found = make(fp32, clock=noisy, config=FEW).search()
    assert found.float_units == ("stem",)
    assert len(calls) <= 14  # twelve openings of one step alone, where the noise had to be half of what counts


@pytest.mark.parametrize(
    ("ms", "told"),
    [
        ((100.0, 95.1), False),  # 2 % count: 2.9 % beyond that are within the margin of 3 %
        ((100.0, 94.9), True),
        ((100.0, 100.9), False),
        ((100.0, 101.1), True),
        ((100.0, 101.1, 101.2), True),  # nothing is taken, whichever is the best
        ((100.0, 80.0, 80.5), False),
        ((100.0, 83.9, 80.0), False),
        ((100.0, 84.1, 80.0), True),
        ((100.0, 84.1, 80.0, 83.9), False),
    ],
)
def test_when_it_is_clear_which_choice_is_the_best(ms: tuple[float, ...], told: bool) -> None:
    search = rules()
    assert search._tells_best(Timing(ms=ms, noise=0.02, margin=0.03)) is told


def test_a_quiet_clock_need_not_tell_two_good_choices_apart() -> None:
    search = rules()
    assert search._tells_best(Timing(ms=(100.0, 80.0, 80.5), noise=0.01, margin=0.015))
    assert not search._tells_best(Timing(ms=(100.0, 80.0, 80.5), noise=0.0101, margin=0.015))
    assert not search._tells_best(Timing(ms=(100.0, 97.0), noise=0.01, margin=0.015))  # but whether it is one


@pytest.mark.parametrize(
    ("ratio", "noise", "told"),
    [(1.029, 0.02, False), (1.031, 0.02, True), (0.971, 0.02, False), (0.969, 0.02, True), (1.0, 0.01, True)],
)
def test_when_it_is_clear_that_a_choice_is_hardly_faster(ratio: float, noise: float, told: bool) -> None:
    """Against 1.05 times fp32's speed, of the last of the choices."""
    search = rules()
    timing = Timing(ms=(105.0 * ratio, 50.0, 100.0), noise=noise, margin=0.03)
    assert search._tells_hardly_faster(timing) is told


def test_a_neighbour_that_works_now_and_then_does_not_change_the_times() -> None:
    """Half of all rounds are slowed by a half, and single runs by ten times."""
    rng = np.random.default_rng(0)
    slow = np.where(rng.random(20) < 0.5, 1.5, 1.0)
    rounds = [
        [[ms * s * (10.0 if rng.random() < 0.2 else 1.0 + 0.01 * rng.random()) for _ in range(5)] for s in slow]
        for ms in (1.0, 1.1, 2.0)
    ]
    one, other, last = times_of(rounds)
    assert other / one == pytest.approx(1.1, rel=0.01)
    assert last / one == pytest.approx(2.0, rel=0.01)


def test_on_a_noisy_machine_what_cannot_be_told_apart_stays_in_int8(fp32: onnx.ModelProto, make: MakeSearch) -> None:
    """Clocks that scatter by 30 %: nothing pays surely, and what is tried is timed again."""
    rng = np.random.default_rng(0)
    calls: list[int] = []

    def noisy(choices: Sequence[FloatNodes | None], *_: object) -> list[float]:
        calls.append(len(choices))
        return [(2.0 if nodes is None else 1.0) * float(rng.uniform(0.7, 1.3)) for nodes in choices]

    config = SearchConfig(modules=6, roles=1, repeats=3)
    found = make(fp32, clock=noisy, config=config).search()
    assert found.float_units == ()
    assert any(calls[i : i + 5] == [calls[i]] * 5 for i in range(len(calls)))  # of up to twice three openings


@pytest.mark.parametrize("field", [{"seconds": 0.5}, {"runs": 0}, {"worth": 0.0}, {"repeats": 0}, {"modules": 0}])
def test_a_search_that_cannot_be_made_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(InputError, match="search"):
        SearchConfig(**field)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_tie_counts_as_what_predict_answers_on_both_sides(fp32: onnx.ModelProto, make: MakeSearch) -> None:
    """Logits of few levels: many images have several classes whose logits are the largest."""
    search = make(fp32)
    last = next(n for n in reversed(fp32.graph.node) if n.op_type in ("Gemm", "MatMul", "Conv"))
    search.choices.ranges = {**search.choices.ranges, last.output[0]: (-500.0, 500.0)}
    found = search.pinned(frozenset(), ())
    logits, _ = run_outputs(open_graph(found.model, search.choices.card), search.images.pixels)
    ties = (logits == logits.max(1, keepdims=True)).sum(1) > 1
    assert ties.sum() > 20
    labels = tuple(map(str, range(10)))
    old, new = (np.array([Prediction(labels, r).index for r in rows.tolist()]) for rows in (search.before, logits))
    right = search.images.labels
    assert found.choices[0].val_drop == pytest.approx(100 * ((old == right).mean() - (new == right).mean()))
    assert flips_of(search.before, logits).flips == (old != new).sum()
    assert ((label_ranks(logits, right) == 0) == (new == right)).all()
