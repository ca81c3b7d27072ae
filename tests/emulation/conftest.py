"""The folder in which a run of the tests keeps its disguises: they are built once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def disguises(shared: Path) -> Path:
    return shared / "disguises"
