from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qdeploy.core.errors import InputError
from qdeploy.training import checkpoint
from qdeploy.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    nested,
    remove_checkpoints,
    save_checkpoint,
    under,
)


def made(epoch: int, step: int = 0) -> Checkpoint:
    tensors = {"model.weight": torch.full((4,), float(epoch)), "random.cpu.0": torch.arange(5, dtype=torch.uint8)}
    return Checkpoint(epoch=epoch, step=step, tensors=tensors, values={"rows": [{"x": 0.1 + 0.2}], "none": None})


def test_what_is_saved_comes_back_and_only_two_are_kept(tmp_path: Path) -> None:
    for epoch, step in ((1, 0), (1, 7), (2, 0), (10, 3)):
        save_checkpoint(tmp_path, made(epoch, step))
    found = load_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert (found.epoch, found.step) == (10, 3)
    assert found.values == {"rows": [{"x": 0.1 + 0.2}], "none": None}
    assert torch.equal(found.tensors["model.weight"], torch.full((4,), 10.0))
    assert found.tensors["random.cpu.0"].dtype == torch.uint8
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert [n.split(".")[0] for n in names] == ["00002-0000000"] * 2 + ["00010-0000003"] * 2
    remove_checkpoints(tmp_path)
    assert load_checkpoint(tmp_path, pytest.fail) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path: Path, suffix: str, damage: str) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path, made(epoch))
    path = tmp_path / "checkpoints" / f"00002-0000000.{suffix}"
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    notes: list[str] = []
    found = load_checkpoint(tmp_path, notes.append)
    assert found is not None
    assert found.epoch == 1
    if (suffix, damage) != ("json", "gone"):  # without its JSON it was never finished
        assert len(notes) == 1
        assert "00002-0000000 is damaged" in notes[0]


@pytest.mark.parametrize(
    ("place", "value"),
    [("epoch", 7), ("step", True), ("values", []), ("rows", [[1.0]]), ("loss", 0.25), ("none", "text"), ("sha256", 5)],
)
def test_a_changed_number_is_noticed(place: str, value: object, tmp_path: Path) -> None:
    rows = [{"loss": float("nan")}]  # as of a run that failed; it is equal to nothing
    save_checkpoint(tmp_path, Checkpoint(epoch=1, step=0, tensors=made(1).tensors, values={"rows": rows, "none": None}))
    assert load_checkpoint(tmp_path, pytest.fail) is not None
    path = tmp_path / "checkpoints" / "00001-0000000.json"
    record = json.loads(path.read_text())
    holder = {"rows": record["values"], "none": record["values"], "loss": record["values"]["rows"][0]}.get(
        place, record
    )
    holder[place] = value
    path.write_text(json.dumps(record))
    notes: list[str] = []
    assert load_checkpoint(tmp_path, notes.append) is None
    assert len(notes) == 1
    assert "00001-0000000 is damaged and passed over" in notes[0]


def test_damaged_ones_do_not_push_out_new_ones(tmp_path: Path) -> None:
    """Both are damaged, the run starts again, and what it saves has lower names."""
    for epoch in (8, 9):
        save_checkpoint(tmp_path, made(epoch))
        (tmp_path / "checkpoints" / f"0000{epoch}-0000000.safetensors").write_bytes(b"")
    notes: list[str] = []
    assert load_checkpoint(tmp_path, notes.append) is None
    assert len(notes) == 2
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, made(epoch))
        found = load_checkpoint(tmp_path, pytest.fail)
        assert found is not None
        assert found.epoch == epoch
    assert sorted(p.stem for p in (tmp_path / "checkpoints").glob("*.json")) == ["00002-0000000", "00003-0000000"]


def test_the_first_checkpoint_that_fails_promises_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match="there is none before it; make room"):
        save_checkpoint(tmp_path, made(1))


def test_another_version_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, made(1))
    path = tmp_path / "checkpoints" / "00001-0000000.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(InputError, match=r"another version of qdeploy \(format 99"):
        load_checkpoint(tmp_path, pytest.fail)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """A real limit on the size of files, in a process of its own."""
    save_checkpoint(tmp_path, made(1))
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from qdeploy.training.checkpoint import Checkpoint, save_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "save_checkpoint(Path(sys.argv[1]), Checkpoint(epoch=2, step=0, values={}, "
        "tensors={'a': torch.zeros(100_000)}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "InputError: the checkpoint" in done.stderr.splitlines()[-1]
    assert "the previous one is intact" in done.stderr
    found = load_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found.epoch == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_prefixes() -> None:
    tensors = nested("a", {"x": torch.zeros(2, 3).T, "b.y": torch.ones(1)})
    assert set(tensors) == {"a.x", "a.b.y"}
    assert tensors["a.x"].is_contiguous()
    assert set(under("a", {**tensors, "ab.x": torch.ones(1)})) == {"x", "b.y"}
