"""What every script here prints beside its numbers, and where it keeps them."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from qdeploy.core.files import write_json
from qdeploy.core.machine import environment

RESULTS = Path(__file__).parent / "results"


def keep(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Print rows and machine, and write them to ``results/<name>.json`` with the command that made them."""
    document = {
        "command": " ".join(["python", str(Path(sys.argv[0])), *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "environment": environment("qdeploy", "torch", "onnx", "onnxruntime", "numpy", "pillow"),
        **facts,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", document)
    print(json.dumps(document["environment"], indent=2))
    for row in rows:
        print(json.dumps(row))
    print(f"kept in {RESULTS / name}.json")
