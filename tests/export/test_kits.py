"""What all kits share: names, a folder made whole with its sums, nothing of the user's replaced."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from qdeploy.cli.main import run
from qdeploy.core.errors import InputError
from qdeploy.export import ExportConfig, export, write_kits
from qdeploy.export.kits.folder import is_unchanged_kit
from qdeploy.export.kits.table import KITS
from qdeploy.export.report.record import ExportReport
from qdeploy.training import TrainResult

ALL = [name for name in KITS if name != "web"]
"""That one needs what npm fetches: test_web_kit.py."""


@pytest.fixture(scope="module")
def kits(exported: ExportReport, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_kits(Path(exported.out), ALL, tmp_path_factory.mktemp("kits"))


@pytest.mark.slow
def test_an_export_with_kits_is_replaced_unless_a_kit_was_changed(trained: TrainResult, tmp_path: Path) -> None:
    out = tmp_path / "with-kits"
    for _ in range(2):
        export(Path(trained.run), ExportConfig(kit=",".join(ALL)), out)
        assert {p.name for p in out.iterdir() if p.is_dir()} == {f"kit-{name}" for name in ALL}
        assert all(is_unchanged_kit(out / f"kit-{name}") for name in ALL)
    assert (out / "kit-c" / "model.fp32.onnx").read_bytes() == (out / "model.fp32.onnx").read_bytes()
    (out / "kit-c" / "main.c").write_text("mine")
    with pytest.raises(InputError, match="kit-c"):
        export(Path(trained.run), ExportConfig(), out)
    assert (out / "kit-c" / "main.c").read_text() == "mine"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("rust", "no kit 'rust'; known: c"),
        ("c,tritn", "did you mean 'triton'"),
        ("", "no kit ''"),
        ("c,", "no kit ''"),
    ],
)
def test_unknown_names_are_refused(names: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ExportConfig(kit=names)


def test_names_may_have_spaces_and_come_twice() -> None:
    assert ExportConfig(kit=" c , c").kits == ("c",)
    assert ExportConfig().kits == ()


@pytest.mark.parametrize("name", ALL)
def test_the_sums_are_those_of_sha256sum(kits: dict[str, Path], name: str) -> None:
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum")
    folder = kits[name]
    assert subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=folder).returncode == 0
    listed = (folder / "SHA256SUMS").read_text().splitlines()
    assert len(listed) == sum(p.is_file() for p in folder.rglob("*")) - 1


@pytest.mark.parametrize("name", ALL)
def test_every_change_of_a_kit_is_seen(kits: dict[str, Path], name: str, tmp_path: Path) -> None:
    for change in ("add", "deep", "link", "remove", "edit", "sums"):
        folder = shutil.copytree(kits[name], tmp_path / change)
        assert is_unchanged_kit(folder)
        readme = folder / "README.md"
        if change == "add":
            (folder / "mine.txt").write_text("mine")
        elif change == "deep":
            (folder / "models" / "mine").mkdir(parents=True)
            (folder / "models" / "mine" / "1").write_text("mine")
        elif change == "link":
            (folder / "mine").symlink_to(tmp_path)
        elif change == "remove":
            readme.unlink()
        elif change == "edit":
            readme.write_text(readme.read_text() + ".")
        else:
            (folder / "SHA256SUMS").write_text("nothing\n")
        assert not is_unchanged_kit(folder), change


def test_what_python_leaves_is_no_change(kits: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(kits["c"], tmp_path / "kit-c")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "app.cpython-311.pyc").write_bytes(b"compiled")
    assert is_unchanged_kit(folder)


def test_a_kit_of_an_export_that_is_there(
    exported: ExportReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shutil.copytree(exported.out, tmp_path / "export")
    assert run(["kit", "c", str(place)]) == 0
    assert f"{place / 'kit-c'}: a C program" in capsys.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    assert run(["kit", "c", str(place), "--out", str(elsewhere), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"export": str(place), "kits": {"c": str(elsewhere / "kit-c")}}
    assert (elsewhere / "kit-c" / "SHA256SUMS").read_bytes() == (place / "kit-c" / "SHA256SUMS").read_bytes()
    assert run(["kit", str(place), "--for", "c", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kits"] == {"c": str(place / "kit-c")}
    assert run(["kit", "c", str(place), "--for", "web"]) == 2
    assert "kits are named twice, found c and web" in capsys.readouterr().err
    assert run(["kit"]) == 2
    assert "which kits?; name some of c, native" in capsys.readouterr().err
    (elsewhere / "kit-c" / "README.md").write_text("mine")
    assert run(["kit", "c", str(place), "--out", str(elsewhere)]) == 2
    assert capsys.readouterr().err.startswith(f"qdeploy: {elsewhere / 'kit-c'} is no kit, or was changed")


def test_a_kit_needs_a_whole_export(exported: ExportReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kit", "c", str(tmp_path)]) == 2
    assert "report.json cannot be read" in capsys.readouterr().err
    place = shutil.copytree(exported.out, tmp_path / "export")
    (place / exported.recommended).unlink()
    assert run(["kit", "c", str(place)]) == 2
    assert "its recommended model file is missing; export again" in capsys.readouterr().err
    assert not (place / "kit-c").exists()


def test_the_kit_of_the_shipped_model_lands_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["kit", "c"]) == 0
    assert is_unchanged_kit(tmp_path / "kit-c")
    assert "kit-c: a C program" in capsys.readouterr().out
