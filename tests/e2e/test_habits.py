"""What helps people to work on the project: make's help, the checks before a commit, the site of the documentation."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qdeploy

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_make_help_explains_every_target() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (targets,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.M)
    explained = {words[0] for line in shown.stdout.splitlines() if len(words := line.split()) > 1}
    assert explained == set(targets.split())


def test_what_runs_before_a_commit_is_what_make_lint_runs() -> None:
    yaml = pytest.importorskip("yaml")
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.M)
    linted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == linted


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert versions[0] == qdeploy.__version__


@pytest.mark.parametrize(
    "name",
    [
        "qdeploy",
        "qdeploy.bench",
        "qdeploy.bench.tune",
        "qdeploy.checks.explain",
        "qdeploy.serve",
        "qdeploy.training",
        "qdeploy.export",
        "qdeploy.study",
    ],
)
def test_the_reference_has_all_that_a_package_offers(name: str) -> None:
    listed: dict[str, set[str]] = {}
    module = ""
    for directive, argument in re.findall(r"^\.\. (\w+):: (\S+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.M):
        if directive == "currentmodule":
            module = argument
        else:
            listed.setdefault(module, set()).add(argument)
    package = importlib.import_module(name)
    offered = {n for n in package.__all__ if callable(getattr(package, n))}
    assert listed[name] == offered


def test_the_list_of_pages_has_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = [name for tree in re.findall(r"```\{toctree\}\n(.*?)```", index, flags=re.S) for name in tree.split()]
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"}
    assert sorted(name for name in listed if name[0] != ":" and name in pages) == sorted(pages)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="needs qdeploy[docs]")
def test_the_site_is_built_without_a_warning_and_needs_no_other_machine(tmp_path: Path) -> None:
    """Every link and anchor of a page leads somewhere, and what the pages load lies beside them."""
    words = ("--quiet", "--fail-on-warning", "--keep-going", "--doctree-dir", f"{tmp_path}/doctrees")
    command = [sys.executable, "-m", "sphinx", *words, str(ROOT / "docs"), f"{tmp_path}/site"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "searchindex.js").exists()
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(\w+:[^"]*)"', page.read_text())
        assert loaded == [], page.name
