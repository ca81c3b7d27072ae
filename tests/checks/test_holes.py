"""Known vulnerabilities: the table, and what doctor makes of it."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.version import Version

from qdeploy.checks.doctor import Diagnosis, holes_findings
from qdeploy.checks.holes import HOLES, known_holes

VERSIONS = ("1.20.1", "1.21", "1.21.0+cu128", "2.9.1", "2.10", "2.10.0a0+git", "12.3.0", "13.0.0", "13.0.0.post1")


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_are_compared_as_pip_does(version: str) -> None:
    found = {hole.package for hole in known_holes(lambda package: version)}
    release = Version(version).release
    assert found == {h.package for h in HOLES if Version(".".join(map(str, release))) < Version(h.fixed)}


def test_the_table_names_advisories_and_packages_that_are_used() -> None:
    used = " ".join(metadata.requires("qdeploy") or [])
    for hole in HOLES:
        assert re.search(rf"\b{hole.package}\b", used)
        assert hole.ids
        assert all(re.fullmatch(r"CVE-20\d\d-\d{4,}|GHSA(-[0-9a-z]{4}){3}", name) for name in hole.ids)


def test_the_doctor_warns_and_is_not_alarmed() -> None:
    (found,) = holes_findings({"pillow": "11.0.0", "torch": "2.14.1"}.get)
    assert (found.name, found.status) == ("known hole in pillow", "warning")
    assert "pillow 11.0.0" in found.detail
    assert "CVE-2026-96639" in found.detail
    assert found.fix == "pip install -U 'pillow>=13.0.0'"
    assert Diagnosis(checks=(found,)).ok


def test_what_is_not_installed_has_no_hole() -> None:
    assert known_holes(lambda package: None) == []
