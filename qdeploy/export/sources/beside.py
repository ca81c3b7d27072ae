"""What a foreign file, or the files beside it, say of the normalisation that the graph expects."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import onnx

from qdeploy.core.preprocessing import Preprocessing

FILES = (("preprocessor_config.json", "image_mean", "image_std"), ("config.json", "mean", "std"))
"""Hugging Face's, and timm's; the keys of mean and std."""
INSIDE = "pretrained_cfg"
ULTRALYTICS = "ultralytics"


def other_normalisation(model: onnx.ModelProto, rules: Preprocessing, file: Path) -> str | None:
    """Return a line if a file's metadata, or a file beside it, say another mean or std than is taken; else None."""
    for where, mean, std in _said(model, file):
        taken = (*rules.mean, *rules.std)
        if all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip((*mean, *std), taken, strict=True)):
            return None
        numbers = " and ".join(
            f"`{name}={','.join(f'{v:g}' for v in vs)}`" for name, vs in (("mean", mean), ("std", std))
        )
        return f"{where} says {numbers}, for pixels from 0 to 1; another normalisation is taken"
    return None


def _said(model: onnx.ModelProto, file: Path) -> list[tuple[str, list[float], list[float]]]:
    found = []
    if any(p.key == "author" and ULTRALYTICS in p.value.lower() for p in model.metadata_props):
        found.append((f"{file.name} is Ultralytics', whose classifiers take plain pixels, which", [0.0] * 3, [1.0] * 3))
    for name, mean_key, std_key in FILES:
        table = _table(file.parent / name)
        for part in (table, table.get(INSIDE)):
            if isinstance(part, dict):
                mean, std = _numbers(part.get(mean_key)), _numbers(part.get(std_key))
                if mean and std:
                    found.append((str(file.parent / name), mean, std))
    return found


def _table(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _numbers(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, (int, float)) for v in value):
        return None
    return [float(v) for v in value]
