"""Folders that somebody changed: an interrupted run with its checkpoints, and a kit that was compiled for a device."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.files import sha256_of
from qdeploy.export import write_kits
from qdeploy.training.checkpoint import sealed
from tests.core.test_hostile_cards import VALUES, places, put
from tests.forked import forked
from tests.native.compiled import COMPILER
from tests.serve.test_fuzz import bent

SOUND = "sound"
"""The folder of what is copied and changed, beside the batches' folders."""
TRAIN = (
    *("train", "photos", "--model", "nano-ar", "--epochs", "2", "--batch-size", "12", "--device", "cpu"),
    *("--out", "run", "--set", "checkpoint_seconds=0"),
)


def prepare(root: Path) -> None:
    """Make an interrupted run and, where there is a compiler, a kit whose program is built."""
    folder = root / SOUND
    folder.mkdir()
    dice = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for label in ("leaf", "stone"):
            (place := folder / "photos" / split / label).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(dice.integers(0, 256, (64, 64, 3), np.uint8)).save(place / f"{i}.png")
    ended = forked(_interrupted, folder)
    assert ended.code == 7, ended.err
    if COMPILER and shutil.which("make"):
        kit = write_kits(SHIPPED, ["native"], folder)["native"]
        subprocess.run(["make", "-s", "CFLAGS=-O1"], cwd=kit, check=True)


def _interrupted() -> int:
    """Train until the first epoch's checkpoint is written, and end there without a word."""
    from qdeploy.training import run as training
    from qdeploy.training.checkpoint import save_checkpoint

    def saved(place: Path, checkpoint: Any) -> None:
        save_checkpoint(place, checkpoint)
        if checkpoint.epoch:
            os._exit(7)

    with mock.patch.multiple(training, save_checkpoint=saved, SAVING_SHARE=1e9):
        return run(list(TRAIN))


def changed_run(folder: Path, dice: random.Random) -> tuple[str, list[str]]:
    """Change a record, a checkpoint, or a checkpoint's tensors whose record is made right again; then go on."""
    with contextlib.suppress(FileExistsError):
        os.symlink(Path.cwd().parent / SOUND / "photos", "photos")
    run_folder = folder / "run"
    shutil.copytree(Path.cwd().parent / SOUND / "run", run_folder)
    files = sorted(p for p in run_folder.rglob("*") if p.suffix in (".json", ".safetensors", ".csv"))
    file = dice.choice(files)
    if file.suffix == ".json" and dice.random() < 0.7:
        values = json.loads(file.read_text())
        place = dice.choice(list(places(values)))
        put(values, place, dice.choice(VALUES))
        file.write_text(json.dumps(values))
        what = ".".join(map(str, place))
    else:
        file.write_bytes(data := bent(file.read_bytes(), dice))
        what = "bytes"
        record = file.with_suffix(".json")
        if file.suffix == ".safetensors" and record.exists() and dice.random() < 0.7:
            record.write_text(json.dumps(sealed(json.loads(record.read_text()), sha256_of(data))))
            what = "bytes, and their hash"
    return f"{what} of {file.name}", ["train", "--resume", str(run_folder)]


def changed_kit(folder: Path, dice: random.Random) -> tuple[str, list[str]]:
    """Change the golden photos or the card of a kit, and check a device by them."""
    sound = Path.cwd().parent / SOUND / "kit-native"
    kit = folder / "kit-native"
    kit.mkdir()
    for name in ("model.goldens", "model.card.json", "wire.h"):
        shutil.copy(sound / name, kit)
    file = kit / dice.choice(["model.goldens", "model.card.json"])
    if file.suffix == ".json" and dice.random() < 0.7:
        values = json.loads(file.read_text())
        put(values, dice.choice(list(places(values))), dice.choice(VALUES))
        file.write_text(json.dumps(values))
    else:
        file.write_bytes(bent(file.read_bytes(), dice))
    return f"bytes of {file.name}", ["verify", str(kit), "--device", f"'{sound / 'classify'}' --photos"]


def kinds() -> dict[str, Callable[[Path, random.Random], tuple[str, list[str]]]]:
    """Return what can be changed here, by name."""
    every = {"record or checkpoint of a run": changed_run, "kit on a device": changed_kit}
    return {name: maker for name, maker in every.items() if maker is changed_run or (COMPILER and shutil.which("make"))}
