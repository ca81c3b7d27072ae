"""The guard on a real trained model: what it measures, what it leaves in float, and what it repairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qdeploy.core.artifact import read_artifact
from qdeploy.core.metrics import PairedDifference
from qdeploy.data.catalog import load_dataset
from qdeploy.export import guard as room
from qdeploy.export import units as parts
from qdeploy.export.calibrate import calibrate, choose_images
from qdeploy.export.encodings import encoding_for
from qdeploy.export.guard import Budget, Guard
from qdeploy.export.made import open_graph
from qdeploy.export.quantize import quantize
from qdeploy.export.units import MAX_MODULES, MAX_ROLES, disjoint, nodes_of, quantizable, units_of
from qdeploy.runtime.bench import sample_images
from qdeploy.runtime.session import Session

X86 = encoding_for("x86")
MakeGuard = Callable[..., Guard]


@pytest.fixture(autouse=True)
def all_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have them, whatever other tests need."""
    monkeypatch.setattr(parts, "MAX_MODULES", MAX_MODULES)
    monkeypatch.setattr(parts, "MAX_ROLES", MAX_ROLES)


@pytest.fixture
def few_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not the number of parts that is tested, ten are enough."""
    monkeypatch.setattr(parts, "MAX_MODULES", 10)
    monkeypatch.setattr(parts, "MAX_ROLES", 1)


@pytest.fixture(scope="module")
def fp32(fp32_file: Path) -> onnx.ModelProto:
    return onnx.load(str(fp32_file))


@pytest.fixture(scope="module")
def make(fp32_file: Path) -> MakeGuard:
    dataset = load_dataset()
    card = read_artifact(fp32_file).card
    val = dataset.splits["val"]

    def guard(model: onnx.ModelProto, **fields: Any) -> Guard:
        calibration = calibrate(model, choose_images(dataset, 64, 0), 0)
        return Guard(
            model=model,
            session=open_graph(model, card),
            card=card,
            ranges=calibration.ranges("minmax"),
            biases={},
            pixels=val.pixels[:200],
            labels=val.labels[:200],
            images=sample_images(card.preprocessing),
            runs=10,
            note=lambda _: None,
            tick=lambda done, total: None,
            **{"encoding": X86, "budget": Budget(points=1.0), "timed": False, **fields},
        )

    return guard


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


def test_what_is_slow_on_integers_is_left_in_float(
    fp32: onnx.ModelProto, make: MakeGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks that are told: integers are slow in the stem and in the attention, and fast elsewhere."""
    cost = {"stem.": 3.0, "fusion.attention": 2.0}

    def told(guard: Guard, sessions: list[Session]) -> list[float]:
        return [times[id(s)] for s in sessions]

    times: dict[int, float] = {}
    guard = make(fp32, timed=True)
    times[id(guard.session)] = 40.0
    real = guard._make

    def make_and_time(nodes: frozenset[str]) -> tuple[onnx.ModelProto, Session]:
        model, session = real(nodes)
        slow = {part for part in cost if any(part in n for n in slow_nodes - nodes)}
        times[id(session)] = 10.0 + sum(cost[p] for p in slow) + 0.2 * len(nodes - slow_nodes)
        kept.append(session)  # an id is not given twice
        return model, session

    kept: list[Session] = []
    movable = nodes_of(units_of(fp32, X86))
    slow_nodes = {n for n in movable if any(part in n for part in cost)}
    monkeypatch.setattr(guard, "_make", make_and_time)
    monkeypatch.setattr(Guard, "_time", told)
    choice = guard.search()
    assert set(choice.float_units) == {"stem", "fusion.attention"}
    chosen = next(t for t in choice.trials if t.chosen)
    assert chosen.times_fp32_speed == pytest.approx(4.0)
    gains = {u.unit: u.time_gain for u in choice.units}
    assert gains["stem"] == pytest.approx(12 / 15 - 1)
    assert gains["stages"] is not None
    assert gains["stages"] > 0


def test_where_integers_are_slow_the_search_begins_from_float(
    fp32: onnx.ModelProto, make: MakeGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks that are told: the stem alone is faster in INT8, and anything in INT8 beside it makes the whole slow."""
    guard = make(fp32, timed=True)
    every = quantizable(fp32, X86)
    stem = {n for n in every if n.startswith("stem.")}
    times = {id(guard.session): 40.0}
    real, kept = guard._make, []

    def make_and_time(nodes: frozenset[str]) -> tuple[onnx.ModelProto, Session]:
        model, session = real(nodes)
        times[id(session)] = 32.0 if every - nodes == stem else 45.0
        kept.append(session)  # an id is not given twice
        return model, session

    monkeypatch.setattr(guard, "_make", make_and_time)
    monkeypatch.setattr(Guard, "_time", lambda _, sessions: [times[id(s)] for s in sessions])
    choice = guard.search()
    assert choice.float_units == ("all but stem",)
    assert set(choice.float_nodes) == every - stem
    assert next(t for t in choice.trials if t.chosen).times_fp32_speed == pytest.approx(40 / 32)


def test_what_has_nothing_in_int8_is_no_int8(
    fp32: onnx.ModelProto, make: MakeGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks that are told: every layer is slower in INT8, so that all of them in float would be the fastest."""
    guard = make(fp32, timed=True)
    every = quantizable(fp32, X86)
    times = {id(guard.session): 40.0}
    real, kept = guard._make, []

    def make_and_time(nodes: frozenset[str]) -> tuple[onnx.ModelProto, Session]:
        model, session = real(nodes)
        times[id(session)] = 40.0 + len(every - nodes)
        kept.append(session)  # an id is not given twice
        return model, session

    monkeypatch.setattr(guard, "_make", make_and_time)
    monkeypatch.setattr(Guard, "_time", lambda _, sessions: [times[id(s)] for s in sessions])
    choice = guard.search()
    assert any(n.op_type == "QuantizeLinear" for n in choice.model.graph.node)
    assert any(np.isinf(t.sqnr_db) for t in choice.trials)


@pytest.mark.usefixtures("few_units")
def test_the_real_clock_orders_what_it_times_and_no_graph_is_made_twice(
    fp32: onnx.ModelProto, make: MakeGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[frozenset[str]] = []
    real = quantize

    def counted(model: Any, ranges: Any, encoding: Any, nodes: frozenset[str], biases: Any) -> onnx.ModelProto:
        made.append(nodes)
        return real(model, ranges, encoding, nodes, biases)

    monkeypatch.setattr(room, "quantize", counted)
    choice = make(fp32, timed=True).search()
    gains = {u.unit: u.time_gain for u in choice.units}
    assert gains["stages"] is not None
    assert gains["stages"] > max(g for u, g in gains.items() if u.startswith("head") and g is not None)
    assert sum(t.chosen for t in choice.trials) == 1
    assert any(t.times_fp32_speed for t in choice.trials)
    assert len(made) <= 2 * len(choice.units) + 4 * room.MAX_KEPT  # from both ends, at worst


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


def test_what_costs_accuracy_is_found_by_bisection_and_left_in_float(fp32: onnx.ModelProto, make: MakeGuard) -> None:
    pairs = {n.output[0]: n.name for n in fp32.graph.node if n.op_type == "Conv"}
    readers = [n for n in fp32.graph.node if n.op_type == "Conv" and n.input[0] in pairs]
    layer = next(pairs[n.input[0]] for n in readers if next(a.i for a in n.attribute if a.name == "group") == 1)
    broken = with_an_outlier(fp32, layer, 3000.0)
    choice = make(broken).search()
    whole = choice.trials[0]
    assert whole.float_units == ()
    assert whole.val_drop > 5
    assert choice.within_budget
    assert layer in choice.float_nodes
    assert -choice.difference.points <= 1.0 or -choice.difference.points <= choice.difference.margin95
    assert len(choice.trials) <= 2 + np.ceil(np.log2(MAX_MODULES + MAX_ROLES))
    assert all(t.times_fp32_speed is None for t in choice.trials)
    culprit = max(choice.units, key=lambda u: u.error)
    assert culprit.error > 0.5


@pytest.mark.usefixtures("few_units")
def test_what_must_stay_in_float_does(fp32: onnx.ModelProto, make: MakeGuard) -> None:
    start = frozenset(n.name for n in fp32.graph.node if n.name.startswith("stem."))
    choice = make(fp32).search(start)
    assert start <= set(choice.float_nodes)
    assert not {u.unit for u in choice.units} & {"stem", "stem.0"}


@pytest.mark.parametrize(
    ("points", "margin", "allowed"), [(-0.9, 0.1, True), (-1.1, 0.1, False), (-1.1, 1.2, True), (0.5, 0.1, True)]
)
def test_the_budget_counts_losses_that_are_more_than_noise(points: float, margin: float, allowed: bool) -> None:
    assert Budget(points=1.0).allows(PairedDifference(points=points, margin95=margin, n=500)) is allowed


def test_noise_is_twice_the_standard_error_of_a_ratio() -> None:
    """Rounds whose lower quartile scatters by a known share: the estimate is two of the ratio's errors."""
    rng = np.random.default_rng(0)
    found, ratios = [], []
    for _ in range(200):
        rounds = [[list(10 * np.exp(rng.normal(0, 0.05, 10))) for _ in range(20)] for _ in range(8)]
        found.append(room.noise_of(rounds))
        ratios += [np.log(np.percentile(r, 25) / np.percentile(rounds[0], 25)) for r in rounds[1:]]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(2 * np.std(ratios), rel=0.1)
    assert room.noise_of([[[1.0], [2.0]]]) == 0.0


def test_on_a_noisy_machine_what_cannot_be_told_apart_stays_in_int8(
    fp32: onnx.ModelProto, make: MakeGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks that scatter by 30 %: nothing pays surely, and all is timed three times."""
    rng = np.random.default_rng(0)
    calls = []

    def noisy(sessions: list[Session], *_: Any) -> list[list[list[float]]]:
        calls.append(len(sessions))
        base = [2.0 if i == 0 and len(sessions) < 3 else 1.0 for i in range(len(sessions))]
        return [[[b * float(rng.uniform(0.7, 1.3))] for _ in range(10)] for b in base]

    monkeypatch.setattr(room, "time_rounds", noisy)
    monkeypatch.setattr(room, "TIMINGS", 3)
    monkeypatch.setattr(parts, "MAX_MODULES", 6)
    choice = make(fp32, timed=True).search()
    assert choice.float_units == ()
    assert calls[:3] == [calls[0]] * room.TIMINGS
