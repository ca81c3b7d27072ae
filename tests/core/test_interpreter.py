from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qdeploy.core.interpreter import python_command


@pytest.mark.parametrize("safe", ["", "1"])
def test_a_file_of_the_user_s_folder_is_not_imported(safe: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working folder')")
    done = subprocess.run(
        [*python_command("import numpy; print(numpy.__name__, sys.argv[1])"), "argument"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": safe},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("numpy argument\n", "")
