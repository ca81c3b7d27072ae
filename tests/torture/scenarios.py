"""What is tortured: commands that write, how each goes on after a crash, and what must be true then."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import QdeployError
from qdeploy.core.run_folder import read_run
from qdeploy.core.whole import PART
from tests.forked import command

LABELS = ("apple", "leaf", "stone")
PER_CLASS = 12
TRAIN = (
    *("train", "../photos", "--model", "nano-ar", "--epochs", "2", "--batch-size", "12", "--device", "cpu"),
    *("--out", "run", "--set", "checkpoint_seconds=0"),
)
INT8 = ("--calibration", "minmax", "--float-layers", "none", "--allow-slower", "--allow-drop")
EXPORT = ("export", "run", "--int8", *INT8, "--out", "export")
QUANTIZE = ("quantize", "../theirs.onnx", "--data", "../small", "--out", "theirs", *INT8)
MODEL = "export/model.int8.onnx"


@dataclass(frozen=True)
class World:
    """The folders of a campaign: data, a place where each case happens, and what it is compared with."""

    root: Path

    @property
    def case(self) -> Path:
        """Where every case happens, always the same: the cache knows data by its path."""
        return self.root / "case"

    @property
    def whole(self) -> Path:
        """What commands that nothing happened to have made."""
        return self.root / "whole"

    def begin(self, names: Sequence[str]) -> None:
        """Empty the place of the cases, and put copies of what is whole there."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        for name in names:
            source = self.whole / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, self.case / name)


def nothing_wrong(world: World) -> list[str]:
    """Of a command after whose crash nothing has to be true of its files alone."""
    return []


@dataclass(frozen=True)
class Scenario:
    """A command, and what must be true after whatever happened to it."""

    name: str
    words: tuple[str, ...]
    right: Callable[[World], list[str]]
    """What is wrong with the result, once the command has been run again."""
    needs: tuple[str, ...] = ()
    """What is there before, of ``World.whole``."""
    whole: Callable[[World], list[str]] = nothing_wrong
    """What is wrong with what is there right after the crash: a later command would take it."""
    again: Callable[[World], tuple[str, ...] | None] | None = None
    """How the work goes on; by default, by the same command; None if it is done."""
    makes: str = ""
    """The file or folder that it makes."""

    def next(self, world: World) -> tuple[str, ...] | None:
        """Return the command with which the work goes on after a crash, if there is anything left to do."""
        return self.again(world) if self.again else self.words


def _verified(folder: str) -> Callable[[World], list[str]]:
    def check(world: World) -> list[str]:
        if not (world.case / folder).exists():
            return []
        ended = command(world.case, "verify", folder)
        return [] if ended.code == 0 else [f"{folder} is there and does not verify: {ended.out} {ended.err}"]

    return check


def _same_models(folder: str) -> Callable[[World], list[str]]:
    """Check that an export is there, verifies, and holds the weights of one that nothing happened to."""

    def check(world: World) -> list[str]:
        if not (world.case / folder).exists():
            return [f"{folder} is missing"]
        faults = _verified(folder)(world)
        for file in sorted((world.whole / folder).glob("*.onnx")):
            here, there = (read_artifact(base / folder / file.name) for base in (world.case, world.whole))
            same = here.card.goldens.to_dict() == there.card.goldens.to_dict()
            faults += [] if same else [f"{file.name} answers otherwise than that of an export without a crash"]
        return faults

    return check


def _run_whole(world: World) -> list[str]:
    if not (world.case / "run" / "run.json").exists():
        return []
    try:
        read_run(world.case / "run")
    except QdeployError as error:
        if "has no weights yet" not in str(error):
            return [f"run.json is there and cannot be read: {error}"]
    return []


def _train_again(world: World) -> tuple[str, ...] | None:
    record = world.case / "run" / "run.json"
    if not record.exists():
        return TRAIN
    interrupted = json.loads(record.read_text())["interrupted"]
    return ("train", "--resume", "run") if interrupted else None


def _same_run(world: World) -> list[str]:
    from tests.training.test_run import same_run  # with torch, which the other commands do without

    try:
        same_run(world.whole / "run", world.case / "run")
    except (AssertionError, OSError, ValueError) as error:
        return [f"the run is another than without a crash: {str(error)[:200]}"]
    return []


def _rows(path: Path) -> list[tuple[str, str]]:
    return [(r["image"], r["label"]) for r in csv.DictReader(path.read_text().splitlines())]


def _csv_whole(world: World) -> list[str]:
    file = world.case / "answers.csv"
    if file.exists() and _rows(file) != _rows(world.whole / "answers.csv"):
        return ["answers.csv has its name and not all its rows"]
    return []


def _csv_right(world: World) -> list[str]:
    return _csv_whole(world) if (world.case / "answers.csv").exists() else ["answers.csv is missing"]


def _csv_again(world: World) -> tuple[str, ...] | None:
    return None if (world.case / "answers.csv").exists() else CSV


NATIVE = ("predict", "--engine", "native", f"../photos/{LABELS[0]}/0.png")
"""Compiles the model into the cache."""
CSV = ("predict", "../photos", "--model", str(SHIPPED / "model.int8.onnx"), "--csv", "answers.csv")


def _same_data(world: World) -> list[str]:
    """Ask for the data twice more, from the cache as it is now: the same summary each time."""
    wanted = json.loads((world.whole / "data.json").read_text())
    for _ in range(2):
        ended = command(world.case, "data", "../photos", "--json")
        if ended.code or json.loads(ended.out) != wanted:
            return [f"the data are others than without a crash: {ended.out[:200]} {ended.err[:200]}"]
    return []


def _predicts(folder: str) -> Callable[[World], list[str]]:
    def check(world: World) -> list[str]:
        ended = command(world.case, "predict", "--json", "--model", folder, f"../photos/{LABELS[0]}/0.png")
        return [] if ended.code == 0 else [f"{folder} is not used any more: {ended.err[:300]}"]

    return check


SCENARIOS = (
    Scenario("data", ("data", "../photos"), _same_data),
    Scenario("train", TRAIN, _same_run, ("cache",), _run_whole, _train_again, "run"),
    Scenario("export", EXPORT, _same_models("export"), ("cache", "run"), _verified("export"), makes="export"),
    Scenario(
        "export over another",
        EXPORT,
        _same_models("export"),
        ("cache", "run", "export"),
        _same_models("export"),
        makes="export",
    ),
    Scenario("quantize", QUANTIZE, _same_models("theirs"), ("cache",), _verified("theirs"), makes="theirs"),
    Scenario("native", NATIVE, nothing_wrong, ("cache",)),
    Scenario(
        "tune",
        ("tune", "export", "--seconds", "0.5"),
        _predicts("export"),
        ("cache", "export"),
        _predicts("export"),
    ),
    Scenario("predict --csv", CSV, _csv_right, (), _csv_whole, _csv_again, "answers.csv"),
)


def write_images(folder: Path, size: int) -> None:
    """Write a data set: three shades of noise."""
    rng = np.random.default_rng(0)
    for shade, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        for i in range(PER_CLASS):
            pixels = rng.integers(80 * shade, 80 * shade + 90, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


def build(world: World, scenarios: Sequence[Scenario]) -> None:
    """Make the data, and what the commands make and need to which nothing happens, in this process.

    So everything is imported once, and each case, which is forked from this process, takes no time for it.
    """
    write_images(world.root / "photos", 64)
    world.case.mkdir()
    os.environ["QDEPLOY_CACHE"] = str(world.case / "cache")
    wanted = {name for s in scenarios for name in (*s.needs, s.makes)}
    if "theirs" in wanted:
        from tests.foreign.build import SIZE, Net  # with onnx

        write_images(world.root / "small", SIZE)
        theirs = Net()
        theirs.head(theirs.stem())
        (world.root / "theirs.onnx").write_bytes(theirs.model().SerializeToString())
    makers = {"run": TRAIN, "export": EXPORT, "theirs": QUANTIZE, "answers.csv": CSV}
    before = Path.cwd()
    os.chdir(world.case)
    try:
        for name, words in makers.items():
            if (name in wanted or (name == "run" and "export" in wanted)) and (code := run([*words, "-q"])):
                raise RuntimeError(f"{' '.join(words)} ends with exit code {code} where nothing happens to it")
        Path("data.json").write_text(command(world.case, "data", "../photos", "--json").out)
    finally:
        os.chdir(before)
    shutil.copytree(world.case, world.whole)


def age(folder: Path) -> None:
    """Let what a killed process has left look an hour old, so that the next one sees that it is of no use."""
    for path in folder.rglob("*"):
        if PART.fullmatch(path.name):
            os.utime(path, (time.time() - 3600,) * 2, follow_symlinks=False)


def left_over(world: World) -> list[str]:
    """Return what a command that ended well has left beside its result."""
    return [
        f"{path.relative_to(world.case)} is left"
        for path in world.case.rglob("*")
        if path.name.endswith((".part", ".tmp", ".compile", ".old", "checkpoints"))
    ]
