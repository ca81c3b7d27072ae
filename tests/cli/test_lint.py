"""``qdeploy lint`` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from qdeploy import export as room
from qdeploy.cli.main import run
from qdeploy.core.errors import for_command_line
from qdeploy.export.int8.encodings import ENCODINGS, RUNTIMES
from tests.export.test_adopt import Form, saved

SHIPPED = Path(__file__).parents[2] / "qdeploy" / "shipped"
INT8 = str(SHIPPED / "model.int8.onnx")


def test_the_table_names_rule_reason_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lint", INT8]) == 0
    out = capsys.readouterr().out
    assert "quantized" in out
    assert "activation-zero-point" in out
    assert "To do: export with --int8 and --target tensorrt" in out


@pytest.mark.parametrize(
    ("runtime", "code"), [("x86", 0), ("openvino", 0), ("cortex-m", 0), ("tensorrt", 1), ("x86-avx2", 1)]
)
def test_the_exit_code_is_the_verdict_asked_for(runtime: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lint", INT8, "--for", runtime, "--json"]) == code
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert set(report) == {"path", "opset", "nodes", "quantized", "support", "findings", "not_taken"}
    assert (report["support"][runtime] == "ok") == (code == 0)
    assert set(report["findings"][0]) == {"rule", "severity", "runtimes", "places", "first", "why", "fix"}


def test_it_says_whether_quantize_takes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken, refused = saved(tmp_path, Form()), tmp_path / "sigmoids.onnx"
    model = onnx.load(taken)
    model.graph.node.append(onnx.helper.make_node("Sigmoid", ["y"], ["each"]))
    model.graph.output[0].name = "each"
    onnx.save(model, refused)
    assert run(["lint", str(taken)]) == 0
    assert capsys.readouterr().out.endswith("`qdeploy adopt` and `qdeploy quantize` take the file\n")
    assert run(["lint", str(refused), "--json"]) == 0
    reason = json.loads(capsys.readouterr().out)["not_taken"]
    assert run(["quantize", str(refused), "--data", "fashion-mnist-mini"]) == 2
    assert for_command_line(reason) in capsys.readouterr().err
    assert run(["lint", INT8, "--json"]) == 0
    assert "int8; give its fp32 file" in json.loads(capsys.readouterr().out)["not_taken"]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("no graph\n")
    for arguments in (["none.onnx"], [str(tmp_path)], [str(tmp_path / "text.onnx")], [INT8, "--for", "abacus"], []):
        assert run(["lint", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1


def test_every_runtime_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for runtime in RUNTIMES:
        assert run(["lint", INT8, "--for", runtime]) in (0, 1)
        assert f" {runtime} " in capsys.readouterr().out
    assert run(["export", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert ", ".join(ENCODINGS) in told


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from qdeploy.cli.main import run; "
        f"sys.exit(run(['lint', {INT8!r}, '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_names_of_the_room_are_there() -> None:
    assert [name for name in room.__all__ if not hasattr(room, name)] == []
    assert not hasattr(room, "nothing")
