from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qdeploy.data.places import cache_folder


def test_the_cache_is_the_given_folder_or_in_the_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("QDEPLOY_CACHE")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "qdeploy"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_folder() == tmp_path / "home" / ".cache" / "qdeploy"
    assert cache_folder().name == ("Cache" if sys.platform == "win32" else "qdeploy")
    assert not cache_folder().exists()
