"""The git commit of the working folder, if there is one."""

from __future__ import annotations

import subprocess


def git_commit() -> dict[str, str | bool] | None:
    """Return the current commit and whether the tree has changes; None outside a repository or without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
