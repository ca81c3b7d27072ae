"""Records the README's terminal session from what the commands print: docs/images/session.svg.

    python scripts/record_session.py

It takes an environment with the extra ``train``, and two minutes on two idle cores, of which training is most. Nothing
is written by hand: another machine gives other figures.
"""

from __future__ import annotations

import argparse
import os
import re
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "qdeploy train --model nano-ar --epochs 12",
    "qdeploy export --int8",
    "qdeploy predict examples/ankle-boot.png examples/bag.png examples/coat.png",
)
WIDTH = 104
"""Columns: those of an epoch's line."""
PLAIN_FONT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.S)
"""Rich's frame without fonts from elsewhere: the picture asks no other machine for anything."""


def main() -> None:
    """Run the commands in an empty folder and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    picture = ROOT / "docs" / "images" / "session.svg"
    parser.add_argument("--out", type=Path, default=picture, metavar="FILE", help="default: docs/images/session.svg")
    out: Path = parser.parse_args().out
    console = Console(record=True, width=WIDTH, file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "examples").symlink_to(ROOT / "examples")
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            for line, is_result in lines(command, folder):
                text = line.replace(f"{ROOT}/", "").rstrip()
                console.print(Text(text, style="" if is_result else "bright_black"))
            console.print()
    svg = console.export_svg(title="qdeploy", code_format=PLAIN_FONT, unique_id="session")
    out.write_text("\n".join(s.rstrip() for s in svg.splitlines()) + "\n")


def lines(command: str, folder: Path) -> Iterator[tuple[str, bool]]:
    """Run a command; yield its lines as they come, and whether each is a result (stdout) or a note (stderr)."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": str(WIDTH)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pipe = subprocess.PIPE
    with (
        # no buffer: what select does not see would come too late, behind lines of the other stream
        subprocess.Popen(command.split(), cwd=folder, env=environment, stdout=pipe, stderr=pipe, bufsize=0) as running,
        selectors.DefaultSelector() as streams,
    ):
        assert running.stdout
        assert running.stderr
        for stream in (running.stdout, running.stderr):
            streams.register(stream, selectors.EVENT_READ, stream)
        while streams.get_map():
            first = min((key.data for key, _ in streams.select()), key=lambda stream: stream is not running.stdout)
            if line := first.readline():
                yield line.decode(), first is running.stdout
            else:
                streams.unregister(first)


if __name__ == "__main__":
    main()
