"""The campaign in short, each part as `make torture` runs it, and what it has to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core.artifact import SHIPPED, sealed
from qdeploy.core.onnx_bytes import metadata_entries
from tests.forked import forked
from tests.torture.artifacts import IMAGE, KINDS, answer, judged
from tests.torture.images import ROUND
from tests.torture.operations import Operation, Plan, out_of_order, read_trace, watch

ROOT = Path(__file__).parents[2]


def campaign(tmp_path: Path, *words: str) -> Any:
    """Run the campaign in a process of its own; gives its report."""
    out = tmp_path / "torture.json"
    call = [sys.executable, "-m", "tests.torture", *words, "--seed", "7", "--out", str(out)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def test_a_short_campaign_of_crashes(tmp_path: Path) -> None:
    report = campaign(tmp_path, "crash", "--minutes", "0.1", "--only", "predict --csv")
    assert report["faults"] == 0
    assert report["parts"]["crash"]["cases"] >= 2


def test_a_short_campaign_of_changed_files(tmp_path: Path) -> None:
    report = campaign(tmp_path, "artifacts", "--minutes", "0.1")
    assert report["parts"]["artifacts"]["cases"] >= 20
    found = report["parts"]["artifacts"]
    assert set(found["sums"]) == set(KINDS)
    assert {"graph, sealed again: taken", "model file, damaged: refused"} <= set(found["outcomes"])


def test_a_short_campaign_of_images(tmp_path: Path) -> None:
    found = campaign(tmp_path, "images", "--minutes", "0.05")["parts"]["images"]
    rounds, left = divmod(found["sums"].pop("predict") - 60 - 14, ROUND)
    assert rounds >= 1
    assert left == 0
    assert found["sums"] == {"data": 60, "serve": 60}


@pytest.mark.slow
def test_a_short_campaign_against_a_server(tmp_path: Path) -> None:
    pytest.importorskip("hypothesis")
    found = campaign(tmp_path, "service", "--minutes", "0.2")["parts"]["service"]
    assert {"200", "400", "404"} <= set(found["statuses"])
    assert found["sums"]["between"] > 10


@pytest.mark.slow
def test_a_short_campaign_of_everything_that_is_written(tmp_path: Path) -> None:
    report = campaign(tmp_path, "crash", "--minutes", "3", "--only", "data,train,export,quantize")
    assert {"kill at an operation", "kill at a moment"} <= set(report["parts"]["crash"]["sums"])


def writes(folder: Path, plan: Plan, trace: Path | None = None) -> int:
    """Write a file as it should not be done: under its own name, and never flushed."""
    watch(folder, plan, trace)
    part = folder / "a.part"
    part.write_text("half")
    part.rename(folder / "a")
    return 0


def test_operations_are_written_down_killed_and_made_to_fail(tmp_path: Path) -> None:
    folder, trace = tmp_path / "here", tmp_path / "trace"
    folder.mkdir()
    assert forked(partial(writes, folder, Plan(), trace), folder).code == 0
    found = read_trace(trace)
    part, whole = str(folder / "a.part"), str(folder / "a")
    assert found == [Operation("open", part), Operation("rename", part, whole)]
    assert [f.rpartition("/")[2] for f in out_of_order(found)] == [
        "a.part is renamed before it is on the disk",
        "a is not written to the disk after the renaming",
    ]
    (folder / "a").unlink()
    assert forked(partial(writes, folder, Plan(1)), folder).code == -9
    assert os.listdir(folder) == ["a.part"]
    failed = forked(partial(writes, folder, Plan(1, "fail", 28)), folder)
    assert "No space left on device" in failed.err


def test_a_file_that_answers_otherwise_is_found(tmp_path: Path) -> None:
    """What the campaign calls wrong: a model that was exchanged for another is taken, and answers another thing."""
    words = ["predict", "--json", "--model", str(SHIPPED / "model.int8.onnx"), str(IMAGE)]
    best = json.loads(answer(words)[1])["predictions"][0]
    assert judged(("graph", words), best) == ("taken", "")
    assert judged(("graph", words), {**best, "probability": best["probability"] / 2})[0] == "wrong"
    assert judged(("labels", words), {**best, "label": "x"})[0] == "taken"
    assert judged(("graph", ["predict", "--model", str(tmp_path), str(IMAGE)]), best)[0] == "refused"
    assert judged(("graph", ["verify", "--json", "--nothing"]), best)[0] == "refused"


def test_a_changed_graph_that_is_sealed_again_is_not_refused_for_its_checksum() -> None:
    sound = (SHIPPED / "model.int8.onnx").read_bytes()
    first = min(e.start for e in metadata_entries(sound))
    changed = bytearray(sound)
    changed[first // 2] ^= 1
    assert sealed(bytes(changed))[:first] == bytes(changed)[:first]
    assert sealed(bytes(changed)) != bytes(changed)
    assert sealed(sound) == sound
