"""The order of a sweep and its budget, with trials whose time passes on a clock of the test."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core.errors import InputError, VerdictError
from qdeploy.core.machine import usable_cores
from qdeploy.study import campaign, checks
from qdeploy.study.campaign import resume, sweep
from qdeploy.study.halving import Score, kept
from qdeploy.study.process import Ended, Outcome
from qdeploy.study.record import Model, Step, folder_names, load_record
from qdeploy.study.settings import SweepConfig
from qdeploy.study.trial import Spec

IMAGES = {"train": 1000, "val": 100, "test": 200}


class World:
    """Models, their costs and their luck; a clock; everything that was run."""

    def __init__(self, count: int = 36, error: float = 1.0) -> None:
        rng = random.Random(0)
        self.now = 1000.0
        self.models = {
            f"m{i}": Model(name=f"m{i}", family="f", params=1000 + i, macs=10**6 * rng.randint(3, 60), input_size=64)
            for i in range(count)
        }
        self.error = error
        """How many times longer a step takes than the probe has seen."""
        self.epoch_s = {n: m.macs / 1e7 for n, m in self.models.items()}
        self.skill = {n: 50 + 2 * m.macs / 1e7 + rng.uniform(0, 12) for n, m in self.models.items()}
        self.ran: list[tuple[str, int, str]] = []
        self.broken: set[tuple[str, str]] = set()
        self.stop_after: int | None = None

    def outcome(self, spec: Spec) -> Outcome:
        if self.stop_after is not None and len(self.ran) >= self.stop_after:
            raise KeyboardInterrupt
        self.ran.append((spec.kind, spec.rung, spec.model))
        result = getattr(self, spec.kind)(spec)
        wall_s = result.pop("wall_s")
        self.now += wall_s
        broken = (spec.kind, spec.model) in self.broken
        return Outcome(result={} if broken else result, error="it broke" if broken else None, wall_s=wall_s)

    def probe(self, spec: Spec) -> dict[str, Any]:
        epoch_s = self.epoch_s[spec.model]
        return {"wall_s": 6.0, "epoch_s": epoch_s, "test_s": 0.1, "stepping_s": 2.0, "images": IMAGES}

    def train(self, spec: Spec) -> dict[str, Any]:
        model, seconds = self.models[spec.model], self.error * spec.epochs * self.epoch_s[spec.model]
        top1 = self.skill[spec.model] * (1 - 0.5 / (1 + spec.epochs))
        return {
            "wall_s": 5.0 + seconds, "seconds": seconds, "epochs": spec.epochs, "best_epoch": 1, "val_top1": top1,
            "test_top1": top1, "params": model.params, "macs": model.macs, "family": "f", "input_size": 64,
            "images": IMAGES, "dataset": "d", "dataset_sha256": "same",
        }  # fmt: skip

    def export(self, spec: Spec) -> dict[str, Any]:
        top1 = self.skill[spec.model]
        files = {p: {"test_top1": top1 - d, "test_n": 200, "size_bytes": s, "p50_ms": 1.0} for p, d, s in FILES}
        return {"wall_s": 14.0, "artifacts": files, "verdict": "", "int8_error": None, "target": spec.target}

    def measure(self, spec: Spec) -> dict[str, Any]:
        ms = self.models[spec.model].macs / 1e7
        files = {p: {"latency_ms": ms * f, "n": 1000, "peak_bytes": 10**8} for p, f in (("fp32", 1.0), ("int8", 0.5))}
        return {"wall_s": 5.0, "artifacts": files, "int8_speedup": {"ratio": 2.0, "ci95": [1.9, 2.1]}, "cpu": "c"}


FILES = (("fp32", 0.0, 4000), ("int8", 0.4, 1000))


class FakePool:
    slots = 1

    def __init__(self, world: World) -> None:
        self.world = world

    def run(self, specs: Iterable[Spec]) -> Ended:
        for spec in specs:
            yield spec, self.world.outcome(spec)

    def close(self) -> None:
        pass


class Listener:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.left: list[float | None] = []
        self.folder: Path | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def started(self, folder: Path) -> None:
        self.folder = folder

    def phase(self, done: int, total: int, text: str) -> None:
        pass

    def ended(self, step: Step, done: int, total: int, left_s: float | None) -> None:
        self.left.append(left_s)


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(world: World) -> World:
        monkeypatch.setattr(checks, "grid", lambda: tuple(world.models))
        monkeypatch.setattr(checks, "known_models", lambda config, _: {n: world.models[n] for n in config.models})
        monkeypatch.setattr(checks, "open_pool", lambda config: FakePool(world))
        monkeypatch.setattr(campaign, "LocalPool", lambda slots, threads: FakePool(world))
        monkeypatch.setattr("qdeploy.study.campaign.time.monotonic", lambda: world.now)
        monkeypatch.setattr("qdeploy.core.whole.os.fsync", lambda handle: None)
        monkeypatch.setattr("qdeploy.study.picture.draw_pareto", lambda rows, title: b"png")
        return world

    return use


def trained(world: World) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for kind, rung, model in world.ran:
        if kind == "train":
            found.setdefault(rung, []).append(model)
    return found


@pytest.mark.parametrize("error", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("minutes", [28.0, 45.0, 60.0, 240.0])
def test_the_budget_holds_even_if_the_probe_errs(
    patch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, error: float
) -> None:
    monkeypatch.setattr(campaign, "write_tables", lambda record, note: None)
    world, shown = patch(World(error=error)), Listener()
    begin = world.now
    result = sweep(SweepConfig(budget_minutes=minutes), tmp_path / "s", shown)
    assert world.now - begin <= 60 * minutes
    assert world.now - begin >= 0.6 * 60 * minutes or all(t.epochs == 36 for t in result.trials)
    plan = next(n for n in shown.notes if n.startswith("plan: 36 models, "))
    assert f"of {minutes:g} minutes" in plan
    assert len(result.trials) == 36
    assert all(t.latency_int8_ms for t in result.trials)


def test_a_sweep_of_the_grid_halves_within_the_default_budget(patch: Any, tmp_path: Path) -> None:
    world, shown = patch(World()), Listener()
    result = sweep(None, tmp_path / "s", shown)
    assert shown.notes[0] == "no epochs and no budget given: taking a budget of 60 minutes"
    by_rung = trained(world)
    assert list(by_rung) == [0, 1, 2]
    assert by_rung[0] == list(world.models)
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    epochs = [r["epochs"] for r in document["rungs"]]
    for rung in (0, 1):
        part = 1 - 0.5 / (1 + epochs[rung])
        scores = [
            Score(name=n, val_top1=world.skill[n] * part, macs=world.models[n].macs) for n in by_rung[rung]
        ]  # fmt: skip
        assert by_rung[rung + 1] == kept(scores)
    assert epochs[0] < epochs[1] < epochs[2]
    assert [world.ran.count(("export", r, n)) for n in world.models for r in [last(by_rung, n)]] == [1] * 36
    kinds = [kind for kind, _, _ in world.ran]
    assert kinds[-36:] == ["measure"] * 36  # at the end, nothing between
    assert len([k for k in kinds if k == "export"]) == 36
    rows = {t.name: t for t in result.trials}
    assert {n: r.rung for n, r in rows.items()} == {n: last(by_rung, n) + 1 for n in world.models}
    assert all(r.epochs == epochs[(r.rung or 0) - 1] for r in rows.values())
    assert document["complete"] is True
    assert shown.left[-1] == 0


def last(by_rung: dict[int, list[str]], name: str) -> int:
    return max(r for r, names in by_rung.items() if name in names)


def test_the_budget_is_refused_with_what_is_needed_and_nothing_is_written(patch: Any, tmp_path: Path) -> None:
    world = patch(World())
    with pytest.raises(InputError, match=r"one epoch of each of 36 models takes about ([\d.]+) minutes") as error:
        sweep(SweepConfig(budget_minutes=2), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    needed = float(str(error.value).split("about ")[1].split()[0])
    world.ran.clear()
    result = sweep(SweepConfig(budget_minutes=needed), tmp_path / "s")
    assert min(t.epochs or 0 for t in result.trials) == 1


def test_without_a_budget_every_model_trains_equally_and_nothing_is_probed(patch: Any, tmp_path: Path) -> None:
    world = patch(World(3))
    result = sweep(SweepConfig(models=("m2", "m0"), epochs=4), tmp_path / "s")
    assert [(k, n) for k, _, n in world.ran] == [
        ("train", "m2"), ("train", "m0"), ("export", "m2"), ("export", "m0"), ("measure", "m2"), ("measure", "m0"),
    ]  # fmt: skip
    assert [(t.name, t.epochs, t.rung) for t in result.trials] == [("m2", 4, 1), ("m0", 4, 1)]


def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(patch: Any, tmp_path: Path) -> None:
    world = patch(World(12))
    world.broken = {("probe", "m1"), ("train", "m2"), ("export", "m3"), ("measure", "m4")}
    result = sweep(SweepConfig(budget_minutes=20), tmp_path / "s")
    errors = {t.name: t.error for t in result.trials if t.error}
    assert errors == {
        "m1": "probe: it broke", "m2": "train: it broke", "m3": "export: it broke", "m4": "measure: it broke",
    }  # fmt: skip
    rows = {t.name: t for t in result.trials}
    assert rows["m2"].epochs is None
    assert rows["m3"].epochs is not None
    assert rows["m4"].test_top1_int8 is not None
    assert rows["m5"].latency_int8_ms is not None
    assert "m1" not in {n for kind, _, n in world.ran if kind == "train"}
    with (tmp_path / "s" / "sweep.csv").open() as stream:
        assert {r["name"]: r["error"] for r in csv.DictReader(stream)}["m2"] == "train: it broke"


def test_failures_are_retried_only_if_asked(patch: Any, tmp_path: Path) -> None:
    world = patch(World(12))
    world.broken = {("probe", "m1"), ("train", "m2"), ("measure", "m4")}
    sweep(SweepConfig(budget_minutes=20), tmp_path / "s")
    with pytest.raises(InputError, match="is complete.*`retry_failed`"):
        resume(tmp_path / "s")
    world.broken.clear()
    world.ran.clear()
    result = resume(tmp_path / "s", retry_failed=True)
    assert [t.error for t in result.trials] == [None] * 12
    assert sorted({n for _, _, n in world.ran}) == ["m1", "m2", "m4"]
    assert [k for k, _, n in world.ran if n == "m4"] == ["measure"]
    with pytest.raises(InputError, match="is complete, see its sweep.html$"):
        resume(tmp_path / "s", retry_failed=True)


def test_a_sweep_goes_on_with_other_jobs(patch: Any, tmp_path: Path) -> None:
    world = patch(World(2))
    world.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        sweep(SweepConfig(epochs=1), tmp_path / "s")
    world.stop_after = None
    with pytest.raises(InputError, match="`jobs` must be between 1 and"):
        resume(tmp_path / "s", jobs=10_000)
    resume(tmp_path / "s", jobs=usable_cores())
    assert load_record(tmp_path / "s").config.jobs == usable_cores()


def test_stopped_anywhere_it_ends_as_the_uninterrupted_one(patch: Any, tmp_path: Path) -> None:
    """The clock goes on only while it works, so the plans are the same; a probe that is stopped leaves nothing."""
    whole = patch(World(10))
    expected = sweep(SweepConfig(budget_minutes=16), tmp_path / "whole")
    for stop in (0, 9, 10, 14, 22, 30, len(whole.ran) - 1):
        world = patch(World(10))
        world.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            sweep(SweepConfig(budget_minutes=16), tmp_path / f"{stop}")
        world.stop_after, world.now = None, world.now + 10_000
        if stop < 10:
            assert not (tmp_path / f"{stop}").exists()
            continue
        result = resume(tmp_path / f"{stop}")
        assert world.ran == whole.ran
        assert result.trials == expected.trials


def test_another_machine_measures_everything_again(patch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, shown = patch(World(2)), Listener()
    world.stop_after = 5  # two trained, two exported, one measured
    with pytest.raises(KeyboardInterrupt):
        sweep(SweepConfig(epochs=1), tmp_path / "s")
    world.stop_after = None
    monkeypatch.setattr(campaign, "cpu_name", lambda: "another")
    resume(tmp_path / "s", shown)
    assert [n for k, _, n in world.ran if k == "measure"] == ["m0", "m0", "m1"]
    assert "measured again" in shown.notes[0]


@pytest.mark.parametrize("before", ["arm", None])
def test_what_was_exported_for_another_target_is_exported_again(
    patch: Any, tmp_path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, shown = patch(World(3)), Listener()
    monkeypatch.setattr(checks, "fitting", lambda config, models, note: models)
    world.stop_after = 6  # three trained, three exported
    original = world.export
    world.export = lambda spec: {**original(spec), "target": before} if spec.model == "m1" else original(spec)
    with pytest.raises(KeyboardInterrupt):
        sweep(SweepConfig(epochs=1, max_flash=10**9), tmp_path / "s")
    world.stop_after, world.export = None, original
    world.ran.clear()
    resume(tmp_path / "s", shown)
    assert world.ran == [("export", 0, "m1"), *(("measure", 0, n) for n in ("m0", "m1", "m2"))]
    (note,) = [n for n in shown.notes if "target" in n]
    assert note.startswith("INT8 is for cortex-m now")
    kept = load_record(tmp_path / "s")
    assert {made.target for n in ("m0", "m1", "m2") if (made := kept.exported(n))} == {"cortex-m"}


def test_data_that_changes_under_the_sweep_is_noticed(patch: Any, tmp_path: Path) -> None:
    world = patch(World(2))
    original = world.train
    world.train = lambda spec: {**original(spec), "dataset_sha256": spec.model}
    result = sweep(SweepConfig(epochs=1), tmp_path / "s")
    assert result.trials[0].error is None
    assert "have changed since the sweep began" in (result.trials[1].error or "")


def test_no_probe_succeeds(patch: Any, tmp_path: Path) -> None:
    world = patch(World(2))
    world.broken = {("probe", "m0"), ("probe", "m1")}
    with pytest.raises(VerdictError, match="no model can be trained: it broke"):
        sweep(SweepConfig(budget_minutes=5), tmp_path / "s")


def test_the_page_needs_nothing_else_and_the_fronts_are_marked(patch: Any, tmp_path: Path) -> None:
    patch(World(12))
    result = sweep(SweepConfig(budget_minutes=20), tmp_path / "s")
    page = (tmp_path / "s" / "sweep.html").read_text()
    for word in ("<script", "http", "<link", "@import", "url("):
        assert word not in page
    assert "src=" not in page
    assert page.count('class="chart"') == len({p.axis for p in result.pareto}) == 3
    assert "Models of different rungs" in page
    on_front = {f"{p.axis}:{p.precision}" for p in result.pareto if p.name == result.pareto[0].name}
    row = next(t for t in result.trials if t.name == result.pareto[0].name)
    assert set(row.pareto.split()) == on_front
    with (tmp_path / "s" / "sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [r["name"] for r in rows] == [t.name for t in result.trials]
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert document["pareto"] == list(result.to_dict()["pareto"])
    assert document["trials"] == list(result.to_dict()["trials"])
    assert document["environment"]["cpu"]


def test_folder_names_are_safe_and_different() -> None:
    names = ("torchvision/resnet18", "torchvision-resnet18", "../x", "Nano", "nano", "..")
    found = folder_names(names)
    assert found["torchvision/resnet18"] == "torchvision-resnet18"
    assert len({f.lower() for f in found.values()}) == len(names)
    assert not any("/" in f or f.startswith(".") for f in found.values())


def test_a_baseline_is_trained_too_and_judges_and_what_is_too_large_is_left_out(patch: Any, tmp_path: Path) -> None:
    world, shown = patch(World(4)), Listener()
    world.skill = {"m0": 60.0, "m1": 59.5, "m2": 70.0, "m3": 61.0}
    config = SweepConfig(models=("m0", "m1", "m2"), epochs=4, baseline="m3", max_params=1001)
    result = sweep(config, tmp_path / "s", shown)
    assert [t.name for t in result.trials] == ["m0", "m1", "m3"]
    assert "left out: 1 model with more than 1,001 parameters" in shown.notes
    assert result.judgement is not None
    assert (result.judgement.baseline, result.judgement.pick) == ("m3", "m0")
    assert [m.accepted for m in result.judgement.models] == [True, False]
    assert result.to_dict()["judgement"]["models"][1]["drop"] == 1.5
    with pytest.raises(InputError, match="no model has at most 999 parameters; the smallest has 1,000"):
        sweep(SweepConfig(models=("m0", "m1"), epochs=4, max_params=999), tmp_path / "t")
