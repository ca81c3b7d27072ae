"""The commands of docs/serve_sources.md, each served for a moment: what they connect to need not be there."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests.serve.serving import EXAMPLES, Serving, until

DOCUMENT = Path(__file__).parents[2] / "docs" / "serve_sources.md"
COMMANDS = [
    line.partition("  #")[0].strip() for line in DOCUMENT.read_text().splitlines() if line.startswith("qdeploy serve ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_document_serves(command: str, tmp_path: Path) -> None:
    if "--camera" in command and shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    (tmp_path / "photos").mkdir()
    shutil.copy(EXAMPLES / "bag.png", tmp_path / "photos")
    with Serving(tmp_path, *shlex.split(command)[2:]) as serving:
        what = "camera-lost" if "/dev/video0" in command else "mqtt-" if "--mqtt" in command else "watching"
        until(lambda: any(entry["event"].startswith(what) for entry in serving.log))


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 4
