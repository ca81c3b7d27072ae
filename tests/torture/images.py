"""Images of every kind through predict, data and serve: the right answer or a reason code, the others unaffected.

Three corpora: files with the pixels that they show or to be refused (``tests/foreign_images.py``, ``bad_images.py``),
anew with every seed; what a folder can hold that is no file; and files changed at random, among which a good one must
be answered as ever.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import qdeploy
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.image_formats import FIRST_TAKEN
from tests.core.bad_images import READABLE, REFUSED
from tests.foreign_images import ForeignImage, foreign_images
from tests.forked import Ended, forked
from tests.serve.running import Running, in_thread
from tests.serve.test_fuzz import bent
from tests.torture.report import Report

MODEL = SHIPPED / "model.fp32.onnx"
"""In float, so that a pixel which a lossy format rounds otherwise changes the answer by little."""
GOOD = (Path(__file__).parents[2] / "examples" / "bag.png").read_bytes()
TOLERANCE = 0.02
"""Of a probability: JPEG, WebP and AVIF may be off by a few levels."""
MEMORY = 3 << 29
ROUND = 60
"""Changed files at a time."""


def corpus(seed: int) -> list[ForeignImage]:
    """Make the files of a seed, and those that stay the same."""
    fixed = [ForeignImage(f"fixed {i}", data, pixels) for i, (data, pixels) in enumerate(READABLE.values())]
    fixed += [ForeignImage(f"refused {i}", data, None) for i, (data, _) in enumerate(REFUSED.values())]
    return [*foreign_images(seed), *fixed]


class Judge:
    """Knows what a model answers to pixels."""

    def __init__(self) -> None:
        self._classifier = qdeploy.load(MODEL)

    def fault(self, image: ForeignImage, answer: dict[str, Any]) -> str:
        """Return what is wrong with an answer to an image, or an empty text."""
        if "error" in answer:
            told = answer.get("reason") and answer["error"]
            return "" if image.pixels is None and told else f"{image.name}: {answer}"
        if image.pixels is None:
            return f"{image.name} was to be refused, and is answered"
        wanted = self._classifier(image.pixels)
        labels = list(wanted.labels)
        best = answer["predictions"][0]
        off = abs(wanted.scores[labels.index(best["label"])] - best["probability"])
        return "" if off <= TOLERANCE else f"{image.name}: {best}, and its pixels are {wanted.label}"


def predicted(folder: Path, *more: str) -> tuple[Ended, dict[str, dict[str, Any]]]:
    """Run ``predict`` on a folder with a limit on memory; gives how it ended, and the answers by file name."""

    def work() -> int:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        return run(["predict", "--json", "--model", str(MODEL), str(folder), *more])

    ended = forked(work, folder.parent)
    rows = [json.loads(line) for line in ended.out.splitlines()]
    return ended, {os.path.basename(row["image"]): row for row in rows}


def by_predict(images: Sequence[ForeignImage], folder: Path, judge: Judge) -> list[str]:
    """Classify all files of a corpus in one run."""
    folder.mkdir()
    for i, image in enumerate(images):
        (folder / f"{i:04}.png").write_bytes(image.data)
    ended, answers = predicted(folder)
    faults = [ended.fault] if ended.broken else []
    missing = {f"{i:04}.png" for i in range(len(images))} - set(answers)
    faults += [f"no answer for {images[int(name[:4])].name}" for name in sorted(missing)[:5]]
    return faults + [f for name, a in answers.items() if (f := judge.fault(images[int(name[:4])], a))]


def by_data(images: Sequence[ForeignImage], folder: Path) -> list[str]:
    """Check all files of a corpus as a data set: as many problems as there are files to be refused."""
    for label in range(2):
        (folder / f"class {label}").mkdir(parents=True)
    for i, image in enumerate(images):
        (folder / f"class {i % 2}" / f"{i:04}.png").write_bytes(image.data)
    ended = forked(partial(run, ["data", str(folder), "--json"]), folder.parent)
    if ended.code:
        return [f"exit code {ended.code}: {ended.err[-300:]}"]
    found = json.loads(ended.out)["problems"]
    real = [p for p in found if not p.endswith(FIRST_TAKEN) and ": the same image as " not in p]
    named = {int(number) for problem in real for number in re.findall(r"/(\d{4})\.png: ", problem)}
    bad = {i for i, image in enumerate(images) if image.pixels is None}
    faults = [f"{images[i].name} is a problem and should be none" for i in sorted(named - bad)]
    return faults + [f"{images[i].name} is no problem and should be one" for i in sorted(bad - named)]


def by_serve(images: Sequence[ForeignImage], server: Running, judge: Judge) -> list[str]:
    """Send all files of a corpus, each followed by a good one."""
    faults = []
    for i, image in enumerate(images):
        reply = server.send("POST", "/predict", image.data)
        if reply.status >= 500:
            faults.append(f"{image.name}: status {reply.status}")
        elif fault := judge.fault(image, reply.json):
            faults.append(fault)
        if i % 10 == 0 and server.send("POST", "/predict", GOOD).json["predictions"][0]["label"] != "Bag":
            faults.append(f"a good image behind {image.name} is answered otherwise")
    return faults


def special_files(folder: Path) -> dict[str, bool]:
    """Put into a folder what is no image file, or has an odd name; gives for each name whether it is an image."""
    folder.mkdir()
    good = {
        "a\nb.png": True,
        "a\x1b[31mred.png": True,
        "-n.png": True,
        "ünïcödé.png": True,
        " .png": True,
        "%s%n{0}.png": True,
        "[old].png": True,
        os.fsdecode(b"\xff\xfe.png"): True,
        "a" * 240 + ".png": True,
    }
    for name in good:
        (folder / name).write_bytes(GOOD)
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to("nothing")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "link.png").symlink_to("ünïcödé.png")
    (folder / "circle").symlink_to(".")
    (folder / "folder.png").mkdir()
    return {**good, "link.png": True, "pipe.png": False, "nowhere.png": False, "itself.png": False, "device.png": False}


def by_name(folder: Path) -> list[str]:
    """Classify a folder of what is no image file: every good one is answered, and nothing forges a line."""
    wanted = special_files(folder)
    ended, answers = predicted(folder)
    faults = [ended.fault] if ended.broken else []
    for name, good in wanted.items():
        answer = answers.get(name)
        if good and (answer is None or answer.get("predictions", [{}])[0].get("label") != "Bag"):
            faults.append(f"{name!r} is not answered: {answer}")
        if not good and answer is not None and "error" not in answer:
            faults.append(f"{name!r} is answered: {answer}")
    text = forked(partial(run, ["predict", "--model", str(MODEL), str(folder)]), folder.parent)
    faults += ["an escape sequence reaches the terminal"] if "\x1b[31m" in text.out + text.err else []
    return faults


def changed(dice: random.Random, sound: Sequence[bytes]) -> Iterator[bytes]:
    """Yield files without an end: a sound one with bytes flipped, cut, repeated or exchanged."""
    while True:
        data = dice.choice(sound)
        yield bent(data, dice) if dice.random() < 0.8 else data[: dice.randrange(len(data))]


def changed_files(folder: Path, dice: random.Random, sound: Sequence[bytes], outcomes: Counter[str]) -> list[str]:
    """Classify a folder of changed files and a good one."""
    folder.mkdir()
    (folder / "good.png").write_bytes(GOOD)
    for i, data in zip(range(ROUND), changed(dice, sound), strict=False):
        (folder / f"{i}.png").write_bytes(data)
    ended, answers = predicted(folder)
    faults = [ended.fault] if ended.broken else []
    outcomes.update(a.get("reason", "answered") for a in answers.values())
    if len(answers) != ROUND + 1:
        faults.append(f"{ROUND + 1} files, {len(answers)} answers: {ended.err[-300:]}")
    if answers.get("good.png", {}).get("predictions", [{}])[0].get("label") != "Bag":
        faults.append("the good one among them is answered otherwise")
    return faults


def torture(root: Path, seed: int, minutes: float) -> Report:
    """Try a corpus of the seed in every way, then changed files until the time is over."""
    report, judge, dice, outcomes = Report(), Judge(), random.Random(seed), Counter[str]()
    os.environ["QDEPLOY_CACHE"] = str(root / "cache")
    end = time.monotonic() + minutes * 60
    images = corpus(seed)
    if minutes < 1:
        images = dice.sample(images, 60)
    report.add("predict", "corpus", by_predict(images, root / "all", judge), len(images))
    report.add("predict", "names and no files", by_name(root / "names"), 14)
    report.add("data", "corpus", by_data(images, root / "data"), len(images))
    with in_thread([MODEL]) as server:
        report.add("serve", "corpus", by_serve(images, server, judge), len(images))
    sound = [image.data for image in images if image.pixels is not None and image.data]
    number = 0
    while time.monotonic() < end or not number:
        folder = root / f"changed-{number}"
        report.add("predict", "changed files", changed_files(folder, dice, sound, outcomes), ROUND)
        shutil.rmtree(folder)
        number += 1
    report.facts = {"outcomes of changed files": dict(outcomes.most_common())}
    return report
