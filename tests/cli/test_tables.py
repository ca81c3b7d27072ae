"""Every table within 80 columns, with names as they are and with long ones."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench import BenchConfig, BenchReport, bench
from qdeploy.bench.tune import Limits, TuneReport
from qdeploy.bench.tune.report import CandidateReport
from qdeploy.checks.confidence import Trust
from qdeploy.checks.diff import Change, Difference
from qdeploy.checks.evaluate import ClassScore, Evaluation
from qdeploy.cli import bench as bench_verb
from qdeploy.cli import diff as diff_verb
from qdeploy.cli import eval as eval_verb
from qdeploy.cli import sweep as sweep_verb
from qdeploy.cli import tune as tune_verb
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.confidence import Reliability
from qdeploy.core.metrics import MacroScores
from qdeploy.models.registry import MODELS
from qdeploy.study import SweepResult
from qdeploy.study.row import Row

WIDTH = 80
LONG = "mobilevit-standard-separable-v3-of-a-night-in-november-with-[brackets]-and-no-end"
Capture = pytest.CaptureFixture[str]


def tables(capsys: Capture) -> list[list[str]]:
    """Return the lines of each table that was printed: its head, a rule, and what follows up to an empty line."""
    lines = capsys.readouterr().out.splitlines()
    rules = [i for i, line in enumerate(lines) if line and set(line.strip()) == {"─"}]
    found = []
    for i in rules:
        begin = max((k for k in range(i) if not lines[k].strip()), default=-1) + 1
        end = next(k for k in range(i, len(lines)) if not lines[k].strip())
        found.append(lines[begin:end])
    return found


def whole(table: list[str], words: str) -> bool:
    """Tell whether a text stands in a table's first column, however it is broken."""
    text = "".join("".join(line.split("  ")[0].split()) for line in table)
    return "".join(words.split()) in text


def check(found: list[list[str]], count: int, heads: list[str]) -> None:
    """So many tables, none too wide, each with its columns' names whole and on one line."""
    assert len(found) == count
    for table in found:
        assert max(len(line.rstrip()) for line in table) <= WIDTH, "\n".join(table)
        assert not any("…" in line for line in table), "\n".join(table)
    for head in heads:
        assert any(head in line for table in found for line in table), head


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> BenchReport:
    folder = tmp_path_factory.mktemp("models")
    paths = [Path(shutil.copy(SHIPPED / f"model.{p}.onnx", folder)) for p in ("fp32", "int8")]
    return bench(paths, BenchConfig(quick=True, seconds=0.5))


@pytest.mark.parametrize("name", [None, LONG])
def test_bench(name: str | None, measured: BenchReport, capsys: Capture) -> None:
    slow: dict[str, float | None] = {
        k: None if v is None else v + 12345 for k, v in measured.results[0].latency_ms.items()
    }
    results = [dataclasses.replace(r, name=name or r.name, latency_ms=slow) for r in measured.results]
    report = dataclasses.replace(measured, results=tuple(results))
    bench_verb.show(report, False)
    found = tables(capsys)
    check(found, 3, ["top-1 %  ", "p50 ms  ", "p99 ms  ", "images/s  ", "peak MB  ", "cold ms"])
    assert whole(found[0], name or "nano-fashion-mnist fp32")
    bench_verb.show(report, True)
    check(tables(capsys), 5, ["p90", "p95", "mean", "std", "file kB", "load ms", "first ms"])


def candidate(file: str, verdict: str) -> CandidateReport:
    return CandidateReport(
        file=file,
        precision="int8",
        engine="openvino-bf16",
        runs_on="openvino",
        threads=128,
        batch=32,
        top1=93.57,
        drop_points=0.12,
        n=700,
        latency_ms={"p50": 12345.678, "p95": 23456.789},
        throughput_per_s=123456.0,
        ratio=12.34,
        ratio_ci95=(12.11, 12.56),
        peak_rss_bytes=12_345_000_000,
        result=verdict,
    )


@pytest.mark.parametrize("file", ["model.int8.onnx", LONG])
def test_tune(file: str, capsys: Capture) -> None:
    far = "the 95th percentile of 23456.789 ms is above the limit of 1 ms"
    report = TuneReport(
        chosen=None,
        reason="nothing is within the limits",
        candidates=(candidate(file, far), candidate("model.fp32.onnx", "no faster beyond noise")),
        not_tried={},
        written=None,
        limits=Limits(),
        environment={},
    )
    tune_verb.show(report, False)
    found = tables(capsys)
    check(found, 1, ["threads  batch", "p50 ms  ", "images/s  ", "result"])
    assert whole(found[0], file.removesuffix(".onnx"))
    tune_verb.show(report, True)
    check(tables(capsys), 3, ["p95 ms", "95 %", "top-1 %", "lost", "MB"])


def test_tune_says_once_why_several_candidates_were_not_timed(capsys: Capture) -> None:
    out = dataclasses.replace(candidate("model.int8.onnx", "drops 1.20 points, over 1"), n=0)
    others = (dataclasses.replace(out, threads=1), dataclasses.replace(out, engine="ort"))
    report = TuneReport(
        chosen=None,
        reason="nothing is within the limits",
        candidates=(candidate("model.fp32.onnx", "chosen"), out, *others),
        not_tried={},
        written=None,
        limits=Limits(),
        environment={},
    )
    tune_verb.show(report, False)
    printed = capsys.readouterr().out
    assert "not timed: model.int8.onnx with openvino-bf16, ort: drops 1.20 points, over 1" in printed.splitlines()
    assert printed.count("drops") == 1


def row(name: str, **known: Any) -> Row:
    """A model of a sweep; what is not given is not known."""
    empty = {f.name: None for f in dataclasses.fields(Row) if f.default is dataclasses.MISSING}
    return Row(
        **{**empty, "name": name, "family": "x", "params": 123_456_789, "macs": 10**10, "input_size": 64, **known}
    )


@pytest.mark.parametrize("name", ["mobilevit-standard-separable-v3", LONG])
def test_sweep(name: str, capsys: Capture) -> None:
    known = {
        "rung": 3,
        "epochs": 300,
        "val_top1": 91.25,
        "test_top1_fp32": 90.5,
        "test_top1_int8": 90.25,
        "precision_fp32": 90.125,
        "recall_int8": 100.0,
        "latency_fp32_ms": 1234.567,
        "latency_int8_ms": 234.567,
        "size_int8_bytes": 123_456_789,
        "epoch_s": 1234.5,
    }
    fronts = "latency:fp32,int8 size:int8 params:fp32,int8"
    trials = (row(name, **known, pareto=fronts), row("nano", error="RuntimeError: no luck"))
    result = SweepResult(out="sweeps/x", trials=trials, pareto=())
    sweep_verb.show(result, False)
    found = tables(capsys)
    check(found, 1, ["fp32 %  int8 %  int8 ms  int8 kB", "fronts"])
    assert whole(found[0], name)
    sweep_verb.show(result, True)
    words = ["params", "M MACs", "rung", "epochs", "val %", "s/epoch", "fp32 ms", "fp32 precision %", "recall %"]
    check(tables(capsys), 3, words)


TRUST = Trust(
    temperature=1.2,
    reliability=Reliability(ece=0.01, ece_ci95=(0.005, 0.02), nll=0.2, brier=0.1),
    coverage=0.9,
    coverage_ci95=(0.85, 0.95),
    answered_top1=55.0,
    curve=((0.5, 0.1), (1.0, 0.5)),
    aurc=0.2,
    aurc_probability=0.1,
)


@pytest.mark.parametrize(
    ("labels", "count"), [(("Bag", "Shirt"), 2), ((LONG, LONG + "2"), 2), (tuple(map(str, range(40))), 1)]
)
def test_eval(labels: tuple[str, ...], count: int, capsys: Capture) -> None:
    score = ClassScore(label="", n=1000, precision=0.5, recall=0.5, f1=0.5, confused_with=labels[-1], confused=12)
    result = Evaluation(
        path="model.onnx",
        name="nano",
        precision="int8",
        engine="ort",
        data="photos",
        split="test",
        n=1000,
        top1=50.0,
        ci95=(49.0, 51.0),
        top5=None,
        top5_ci95=None,
        labels=labels,
        confusion=tuple(tuple(1000 for _ in labels) for _ in labels),
        classes=tuple(dataclasses.replace(score, label=label) for label in labels),
        macro=MacroScores(precision=0.5, recall=0.25, f1=1 / 3),
        images_per_s=1.0,
        card_accuracy={},
        trust=TRUST,
        notes=(),
        problems=(),
    )
    eval_verb.show(result)
    captured = capsys.readouterr()
    assert ("40 labels: which was taken for which is in --json" in captured.out) == (len(labels) == 40)
    assert "mean over the classes: precision 50.0 %, recall 25.0 %, F1 33.3 %" in captured.out
    assert "temperature 1.200, ECE 0.0100 (95 % interval 0.0050 to 0.0200)" in captured.out
    assert "answered 90.00 % (95 % interval 85.00 to 95.00), top-1 of these 55.00 %; the others are" in captured.out
    eval_verb.show(result)
    found = tables(capsys)
    check(found, count, ["precision  ", "recall  ", "most confused with"])
    assert whole(found[0], labels[0])


@pytest.mark.slow
def test_models(capsys: Capture) -> None:
    assert run(["models"]) == 0
    found = tables(capsys)
    check(found, 1, ["px  classes"])
    assert [line.split()[0] for line in found[0][2:]] == list(MODELS)  # no name is broken


def test_lint_and_diff(capsys: Capture) -> None:
    assert run(["lint", str(SHIPPED / "model.int8.onnx")]) == 0
    check(tables(capsys), 1, ["runtime", "support", "findings"])
    assert run(["diff", str(SHIPPED / "model.fp32.onnx"), str(SHIPPED / "model.int8.onnx")]) == 0
    check(tables(capsys), 1, ["subject", "field"])


def test_diff_in_words(capsys: Capture) -> None:
    changes = [
        Change(
            subject="calibration", field="float_choice", a=None, b={"by": "search", "layers": ("stem",), "like": None}
        ),
        Change(subject="confidence", field="before.ece", a=0.20798188186497316, b=0.2),
        Change(subject="confidence", field="after.ece", a=0.20798188186497316, b=0.2),
        Change(subject="confidence", field="before.nll", a=1.0, b=2.0),
        Change(subject="confidence", field="after.nll", a=1.0, b=1.5),
        Change(subject="graph", field="shape", a=[1, 64], b=[True]),
        Change(subject="precision", field="mean", a=3.3792482, b=3.3792483),
    ]
    diff_verb.show(Difference(a="a", b="b", changes=tuple(changes), same=(), meaning=(), numbers=None))
    (found,) = tables(capsys)
    assert [" ".join(line.split()) for line in found[4:]] == [
        "calibration float_choice - by: search; layers: stem",
        "confidence after.ece 0.208 0.2",  # before.ece is the same
        "confidence before.nll 1 2",
        "confidence after.nll 1 1.5",
        "graph shape 1, 64 yes",
        "precision mean 3.3792482 3.3792483",
    ]


def test_doctor_breaks_its_lines_between_words(capsys: Capture) -> None:
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= WIDTH or len(line.split()) == 1 for line in lines)
    assert any(line.startswith(" " * 10) for line in lines)
    assert all(line[:10].strip() in ("", "ok", "missing", "problem") for line in lines)
