"""Fixtures: one small real run and its export, made once a session; generated image folders."""

from __future__ import annotations

import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from qdeploy.data.embedded import FASHION_CLASSES, embedded_source
from qdeploy.export.api import export
from qdeploy.export.config import ExportConfig
from qdeploy.export.int8.float_choice import SearchConfig
from qdeploy.export.report.record import ExportReport
from qdeploy.training import TrainResult, config_from_recipe, train

MakeImages = Callable[..., Path]
SHORT = SearchConfig(modules=4, roles=2, runs=10, repeats=1)
"""For exports whose subject is not the search; test_float_search.py has the whole."""
T = TypeVar("T")


signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell's background jobs ignore Ctrl-C, and so would every process that the tests interrupt."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest, so that no worker is left alone with it at the end."""
    items.sort(key=turn)


def turn(item: pytest.Item) -> int:
    """Return when a test is run: README's training, the other documents, further whole processes, the rest."""
    if item.path.name == "test_documents.py":
        return 0 if "readme" in item.name else 1
    return 2 if item.path.parent.name in ("e2e", "emulation") else 3


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("QDEPLOY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the workers of this run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, name: str, make: Callable[[], T]) -> T:
    """Return what one worker makes in a shared folder and the others wait for."""
    kept = folder / f"{name}.pickle"
    with FileLock(folder / f"{name}.lock"):
        if not kept.exists():
            kept.write_bytes(pickle.dumps(make()))
        result: T = pickle.loads(kept.read_bytes())
        return result


@pytest.fixture(scope="session")
def trained(shared: Path) -> TrainResult:
    """nano-ar, three epochs on the embedded data."""
    config = config_from_recipe("small", model="nano-ar", epochs=3)
    return once(shared, "trained", lambda: train(config, shared / "runs" / "small-run"))


@pytest.fixture(scope="session")
def exported(trained: TrainResult, shared: Path) -> ExportReport:
    """The export of that run, fp32 and INT8; its run folder and export folder are below one root."""
    config = ExportConfig(int8=True, search=SHORT, allow_drop=True, allow_slower=True)
    out = shared / "exports" / "small-run"
    return once(shared, "exported", lambda: export(Path(trained.run), config, out))


@pytest.fixture(scope="session")
def fp32_file(exported: ExportReport) -> Path:
    return Path(exported.artifacts[0].path)


@pytest.fixture(scope="session")
def int8_file(exported: ExportReport) -> Path:
    return Path(exported.artifacts[1].path)


@pytest.fixture
def image_folder(tmp_path: Path) -> MakeImages:
    """Make a folder of class folders with random images; returns its path."""

    def make(classes: tuple[str, ...] = ("cat", "dog"), count: int = 8, name: str = "images", seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        root = tmp_path / name
        for label in classes:
            folder = root / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
        return root

    return make


@pytest.fixture(scope="session")
def boots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three of the ten classes: 20 test images each, and an unreadable file."""
    classes = ("Ankle boot", "Bag", "Trouser")  # as folders stand; the model has Trouser, Bag, Ankle boot
    root = tmp_path_factory.mktemp("data") / "boots"
    for label in classes:
        (root / label).mkdir(parents=True)
    counts: Counter[str] = Counter()
    for record in embedded_source().records["test"]:
        label = FASHION_CLASSES[record.label]
        if label in classes and counts[label] < 20:
            Image.fromarray(np.asarray(record.source)).save(root / label / f"{counts[label]:02}.png")
            counts[label] += 1
    (root / "Bag" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root
