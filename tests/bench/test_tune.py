from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.bench.tune import Limits, TuneConfig, tune
from qdeploy.bench.tune import run as tuning
from qdeploy.bench.tune.candidate import Candidate
from qdeploy.bench.tune.race import race
from qdeploy.bench.tune.report import report_of
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.card import Goldens
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.intervals import PairedDifference
from qdeploy.runtime import device
from qdeploy.runtime.classifier import find_setup

SHIRT = Path(__file__).parents[2] / "examples" / "shirt.png"
FP32, INT8 = (read_artifact(SHIPPED / f"model.{p}.onnx") for p in ("fp32", "int8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export's folder."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "nano"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates: each file in ONNX Runtime with one thread."""
    monkeypatch.setattr(tuning, "engines_for", lambda artifact: ("ort",))
    monkeypatch.setattr(tuning, "usable_cores", lambda: 1)


def candidate(artifact: Artifact, ms: float, engine: str = "ort", threads: int = 1, noise: float = 0.01) -> Candidate:
    """A candidate whose calls took so long."""
    rng = np.random.default_rng([round(1e4 * ms), threads, len(engine)])
    rounds = (ms * (1 + noise * rng.standard_normal((20, 10)))).tolist()
    return Candidate(artifact=artifact, engine=engine, threads=threads, batch=1, rounds=rounds, runs_on=engine)


def test_the_fastest_is_chosen_if_it_is_surely_faster() -> None:
    candidates = [
        candidate(FP32, 1.0),
        candidate(INT8, 0.7),
        candidate(INT8, 0.6, "openvino"),
        candidate(INT8, 0.5, "openvino", 2),
    ]
    assert tuning.choose(candidates, Limits()) is candidates[3]


def test_a_tie_goes_to_the_simpler() -> None:
    candidates = [
        candidate(INT8, 0.98, "openvino"),
        candidate(INT8, 0.99, threads=2),
        candidate(FP32, 1.0),
        candidate(INT8, 1.0),
    ]
    assert tuning.choose(candidates, Limits()) is candidates[2]


def test_the_chosen_comes_first_though_another_is_faster_by_noise() -> None:
    simple, other = candidate(FP32, 0.800), candidate(FP32, 0.796, threads=2)
    report = report_of([other, simple], simple, {}, Limits())
    assert [c.threads for c in report.candidates] == [1, 2]
    assert report.candidates[0] is report.chosen


def test_a_vague_measurement_does_not_beat_a_simpler_and_faster_one() -> None:
    vague = candidate(INT8, 1.15, threads=2, noise=0.9)
    candidates = [candidate(INT8, 0.9, "openvino", noise=0.001), vague, candidate(INT8, 1.0, noise=0.001)]
    assert vague.against(candidates[0])[1] <= 1.03 < candidates[2].against(candidates[0])[1]
    assert tuning.choose(candidates, Limits()) is candidates[2]


def test_a_clock_that_is_too_noisy_is_said() -> None:
    """As in a trial of two seconds: INT8 takes 0.50x the time, or 0.28 to 0.91, and fp32 was chosen."""
    quiet = [candidate(FP32, 1.0), candidate(INT8, 0.99)]
    assert tuning.noise_of(quiet, quiet[0], Limits()) == ""
    slower = [candidate(FP32, 1.0), candidate(INT8, 9.0, noise=0.5)]
    assert tuning.noise_of(slower, slower[0], Limits()) == ""  # surely slower, by however much
    noisy = [candidate(FP32, 1.0), candidate(INT8, 0.5)]
    for either in noisy:
        del either.rounds[8:]
    for i, block in enumerate(noisy[1].rounds):
        block[:] = [t * (0.3 if i % 2 else 4.0) for t in block]
    text = tuning.noise_of(noisy, noisy[0], Limits())
    assert text.startswith("the clock is too noisy to tell: model.int8.onnx with ort, 1 thread takes ")


def test_a_noisy_choice_is_not_written(
    folder: Path, few: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "noise_of", lambda *_: "the clock is too noisy to tell")
    assert run(["tune", str(folder), "--seconds", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "the clock is too noisy to tell" in out
    assert "not written: give it more time by --seconds, or try again on a quieter machine" in out
    assert not (folder / "device.json").exists()


def test_limits_are_kept_and_the_nearest_is_named() -> None:
    fast, small = candidate(INT8, 0.5, "openvino"), candidate(FP32, 1.0)
    fast.peak_rss_bytes, small.peak_rss_bytes = 120_000_000, 70_000_000
    assert tuning.choose([fast, small], Limits(memory_mb=100)) is small
    assert tuning.choose([fast, small], Limits(latency_ms=0.7)) is fast
    assert tuning.choose([fast, small], Limits(throughput=1500)) is fast
    limits = Limits(memory_mb=100, latency_ms=0.9)
    assert tuning.choose([fast, small], limits) is None
    assert min((fast, small), key=limits.excess) is small
    fast.difference = PairedDifference(points=-1.2, margin95=0.1, n=10_000)
    assert limits.broken_before_timing(fast) == "drops 1.20 points, over 1"
    fast.difference = PairedDifference(points=-1.2, margin95=0.5, n=300)
    assert limits.broken_before_timing(fast) == "drops 1.20 points, over 1; 300 images are too few to tell"
    assert Limits(max_drop=2).broken(fast) is None


def test_who_is_clearly_slower_stops_running() -> None:
    candidates = [candidate(a, 1.0) for a in (FP32, INT8)]
    for t, batch in zip(candidates, (8, 1), strict=True):
        t.rounds, t.batch, t.session = [], batch, qdeploy.load(t.artifact.path).session
    race(candidates, Limits(), 20, lambda *_: None)
    assert len(candidates[0].rounds) == 1
    assert candidates[1].n >= 130


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_are_powers_of_two_up_to_the_cores(cores: int, counts: list[int]) -> None:
    assert tuning.thread_counts(cores) == counts


@pytest.mark.usefixtures("few")
def test_the_choice_is_kept_and_predict_uses_it_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", str(folder), "--seconds", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    kept = json.loads((folder / "device.json").read_text())
    chosen = report["chosen"]
    assert {c["file"] for c in report["candidates"]} == {"model.fp32.onnx", "model.int8.onnx"}
    assert chosen["n"] >= 130
    assert chosen["peak_rss_bytes"] > 30e6
    assert (kept["file"], kept["engine"], kept["threads"]) == (chosen["file"], chosen["engine"], chosen["threads"])
    assert kept["sha256"] == read_artifact(folder / chosen["file"]).sha256
    assert run(["predict", str(SHIRT), "--model", str(folder)]) == 0
    said = f"as tuned in {folder}/device.json: {chosen['file']} with ort, 1 thread"
    assert said in capsys.readouterr().err
    classifier = qdeploy.load(folder)
    assert classifier.artifact.path.name == chosen["file"]
    assert classifier.note is not None
    assert classifier.note.startswith(said)


@pytest.mark.usefixtures("few")
def test_int8_that_does_not_pay_gives_way_to_fp32_with_the_reason(folder: Path) -> None:
    shutil.copy(folder / "model.fp32.onnx", folder / "model.int8.onnx")
    artifacts = tuning.read_all(folder)
    disguised = replace(artifacts[1], card=replace(artifacts[1].card, precision="int8"))
    candidates = [candidate(artifacts[0], 1.0), candidate(disguised, 1.3)]
    chosen = tuning.choose(candidates, Limits())
    report = report_of(candidates, chosen, {}, Limits())
    assert report.chosen is not None
    assert report.chosen.precision == "fp32"
    assert "INT8 does not pay here: model.int8.onnx with ort, 1 thread, batch 1 takes 1.3" in report.reason


def test_a_noisy_clock_does_not_say_that_int8_does_not_pay() -> None:
    candidates = [candidate(FP32, 1.0, noise=0.3), candidate(INT8, 0.97, noise=0.3)]
    report = report_of(candidates, candidates[0], {}, Limits())
    assert "INT8 is not shown to be faster here: model.int8.onnx with ort, 1 thread, batch 1 takes " in report.reason
    assert "does not pay" not in report.reason


@pytest.mark.usefixtures("few")
def test_nothing_within_the_limits_is_a_verdict_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", str(folder), "--seconds", "1", "--latency-ms", "0.0001"]) == 1
    assert "nothing is within the limits; nearest: model." in capsys.readouterr().out
    assert not (folder / "device.json").exists()


@pytest.mark.usefixtures("few")
def test_wrong_answers_are_listed_and_never_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    int8 = read_artifact(folder / "model.int8.onnx")
    sound = int8.card.goldens
    goldens = Goldens.of(sound.images, -sound.logits, sound.min_sqnr_db)
    wrong = replace(int8, card=replace(int8.card, goldens=goldens))
    monkeypatch.setattr(tuning, "read_all", lambda _: [read_artifact(folder / "model.fp32.onnx"), wrong])
    report = tune(folder, TuneConfig(seconds=1))
    assert report.chosen is not None
    assert report.chosen.precision == "fp32"
    (bad,) = [c for c in report.candidates if c.precision == "int8"]
    assert "gives wrong answers" in bad.result
    assert bad.n == 0
    assert "INT8 is out" in report.reason


@pytest.mark.usefixtures("few")
def test_the_package_s_own_folder_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", str(SHIPPED), "--seconds", "1"]) == 0
    assert "use --engine ort --threads 1" in capsys.readouterr().out
    assert not (SHIPPED / "device.json").exists()


def tuned(folder: Path, **changes: object) -> Path:
    """Write a device.json that fits this machine, but for the changes."""
    fields = {
        "schema": 1,
        "file": "model.fp32.onnx",
        "sha256": FP32.sha256,
        "engine": "ort",
        "threads": 2,
        "batch": 8,
        "machine": asdict(device.this_machine()),
    }
    (folder / "device.json").write_text(json.dumps({**fields, **changes}))
    return folder


def test_what_is_given_wins_over_what_was_tuned(folder: Path) -> None:
    setup = find_setup(tuned(folder))
    assert (setup.path.name, setup.engine, setup.threads, setup.batch) == ("model.fp32.onnx", "ort", 2, 8)
    assert find_setup(folder, threads=1).threads == 1
    other = find_setup(folder, engine="openvino")
    assert (other.path.name, other.engine, other.threads) == ("model.int8.onnx", "openvino", None)
    assert other.note is not None
    assert "is not used: it is for `engine=ort`" in other.note
    file = find_setup(folder / "model.int8.onnx")
    assert (file.path.name, file.threads, file.note) == ("model.int8.onnx", None, None)
    assert find_setup(folder / "model.fp32.onnx").threads == 2


def test_bench_says_what_it_does_not_measure_of_what_was_tuned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(tuned(folder)), "--quick", "--runs", "70"]) == 0
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "other settings" in line)
    assert "device.json chose other settings for model.fp32.onnx, not measured here: --engine ort --threads 2" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"machine": {**asdict(device.this_machine()), "cpu": "Cortex-A76"}}, "another machine (CPU: Cortex-A76, here"),
        ({"machine": {**asdict(device.this_machine()), "flags": ["neon"]}}, "another machine (CPU flags"),
        ({"machine": {**asdict(device.this_machine()), "cores": 128}}, "another machine (number of cores: 128"),
        ({"sha256": "0" * 64}, "model.fp32.onnx has changed since"),
        ({"file": "model.bf16.onnx"}, "model.bf16.onnx is gone"),
    ],
)
def test_what_was_tuned_for_another_machine_or_file_is_passed_over(
    changes: dict[str, object], says: str, folder: Path
) -> None:
    setup = find_setup(tuned(folder, **changes))
    assert (setup.path.name, setup.engine, setup.threads) == ("model.int8.onnx", "ort", None)
    assert setup.note is not None
    assert says in setup.note
    assert setup.note.endswith("run `qdeploy tune` again")


@pytest.mark.parametrize("changes", [{"schema": 2}, {"threads": 0}, {"file": "../x.onnx"}, {"engine": None}])
def test_a_damaged_device_json_is_refused(changes: dict[str, object], folder: Path) -> None:
    with pytest.raises(InputError, match="device.json is damaged"):
        find_setup(tuned(folder, **changes))


def test_bad_words_are_refused(tmp_path: Path) -> None:
    for field in ("latency_ms", "memory_mb", "max_drop", "throughput"):
        with pytest.raises(InputError, match=f"`{field}` must be positive"):
            Limits(**{field: -1.0})
    with pytest.raises(InputError, match="`seconds`"):
        TuneConfig(seconds=0)
    with pytest.raises(ArtifactError, match="holds no model file"):
        tune(tmp_path)
