"""The header of ONNX Runtime's C API, which no wheel of it carries."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import onnxruntime
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


def runtime_folder(home: Path) -> Path:
    """Make a folder as a release of ONNX Runtime has it: include/ and lib/, with the library from the wheel."""
    include = header_folder()
    if not shutil.which("cc") or not shutil.which("make"):
        pytest.skip("no C compiler or no make")
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip("the wheel of ONNX Runtime has no library to link with on this system")
    (home / "lib").mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (home / "lib" / name).symlink_to(library)
    (home / "include").symlink_to(include)
    return home
