"""The header of ONNX Runtime's C API, which no wheel of it carries."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HEADER = "onnxruntime_c_api.h"


def header_folder() -> Path:
    """Give the folder of the header; the test is skipped where there is none."""
    given = os.environ.get("ONNXRUNTIME_INCLUDE")
    places = [Path(given)] if given else [Path("/usr/include/onnxruntime"), Path(sys.prefix) / "include"]
    found = next((p for p in places if (p / HEADER).is_file()), None)
    if found is None:
        pytest.skip(f"no {HEADER}: `make test` fetches it, or give its folder in ONNXRUNTIME_INCLUDE")
    return found
