"""Vulnerabilities known in versions of the libraries that read what others made, from their makers' advisories.

The table holds what a file can reach through qdeploy, and is as old as this package: it needs no network, and says
nothing of what was found later. For all there is, ``pip-audit`` asks the advisories' servers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hole:
    """One or several advisories that a version closes."""

    package: str
    fixed: str
    """The first version without it, of numbers alone."""
    what: str
    ids: tuple[str, ...]
    """Identifiers of the advisories: CVE or GitHub."""


HOLES = (
    # release notes of Pillow 13.0.0, "Critical"
    Hole(
        package="pillow",
        fixed="13.0.0",
        what="a JPEG, or a file of several frames, can write beyond its memory",
        ids=("CVE-2026-96639", "GHSA-5x8w-8jj5-q52h", "GHSA-8g5g-8vmr-9782"),
    ),
    # advisories of onnx, all closed by 1.21.0
    Hole(
        package="onnx",
        fixed="1.21.0",
        what="an ONNX file with external data can read other files of this machine",
        ids=("CVE-2026-27489", "CVE-2026-34445", "GHSA-q56x-g2fj-4rj6"),
    ),
    # advisories of PyTorch; qdeploy loads no pickle, other programs in the same environment may
    Hole(
        package="torch",
        fixed="2.10.0",
        what="torch.load runs what a checkpoint says, even with weights_only; qdeploy itself never calls it",
        ids=("CVE-2025-32434", "CVE-2026-24747"),
    ),
)


def known_holes(version_of: Callable[[str], str | None]) -> list[Hole]:
    """Return what is known of the installed versions.

    Args:
        version_of: Gives a package's version, or None where it is not installed.
    """
    return [hole for hole in HOLES if (version := version_of(hole.package)) and _older(version, hole.fixed)]


def _older(version: str, fixed: str) -> bool:
    """Compare the numbers of two versions; a pre-release counts as what it comes before."""
    found, wanted = (_numbers(text) for text in (version, fixed))
    length = max(len(found), len(wanted))
    return found + [0] * (length - len(found)) < wanted + [0] * (length - len(wanted))


def _numbers(version: str) -> list[int]:
    release = re.match(r"\d+(\.\d+)*", version)
    return [int(n) for n in release[0].split(".")] if release else []
