"""The kits: folders with which other programs run an exported model, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdeploy.core.artifact import Artifact, model_files, read_artifact
from qdeploy.core.errors import InputError, near_miss
from qdeploy.core.files import read_json
from qdeploy.export.kits.c import write_c_kit
from qdeploy.export.kits.docker import write_docker_kit
from qdeploy.export.kits.folder import is_unchanged_kit, kit_made_whole
from qdeploy.export.kits.kserve import write_kserve_kit
from qdeploy.export.kits.native import write_native_kit
from qdeploy.export.kits.ray import write_ray_kit
from qdeploy.export.kits.triton import write_triton_kit
from qdeploy.export.kits.web import write_web_kit
from qdeploy.export.kits.web_runtime import web_runtime

PREFIX = "kit-"


@dataclass(frozen=True, kw_only=True)
class Kit:
    """One kind of kit."""

    write: Callable[[Path, Sequence[Artifact], str], None]
    """Writes the files into an empty folder; takes the files of an export and the name of the recommended one."""
    line: str
    """What it is, on one line."""
    require: Callable[[], object] | None = None
    """Fetches what the kit needs from elsewhere, or raises: called before an export's minutes."""


KITS = {
    "c": Kit(write=write_c_kit, line="a C program with these models"),
    "native": Kit(write=write_native_kit, line="the model as C, for any device with a C compiler"),
    "triton": Kit(write=write_triton_kit, line="a model repository for Triton"),
    "kserve": Kit(write=write_kserve_kit, line="services for KServe"),
    "ray": Kit(write=write_ray_kit, line="an application for Ray Serve"),
    "docker": Kit(write=write_docker_kit, line="a Dockerfile for an image that serves the recommended model"),
    "web": Kit(write=write_web_kit, line="a page that classifies in the browser itself", require=web_runtime),
}


def kit_names(text: str) -> tuple[str, ...]:
    """Parse names between commas, and leave out repeated ones.

    Raises:
        InputError: If there is no such kit, or no name.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in KITS:
            known = ", ".join(KITS)
            raise InputError(f"there is no kit '{name}'{near_miss(name, KITS)}; known: {known}")
    return names


def kit_folders(place: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each kit."""
    return {name: place / f"{PREFIX}{name}" for name in names}


def require_kits(names: Sequence[str]) -> None:
    """Check that the kits can be written.

    Raises:
        MissingDependencyError: If something that one of them needs is missing.
    """
    for name in names:
        if require := KITS[name].require:
            require()


def write_kits(export: Path, names: Sequence[str], out: Path | None = None) -> dict[str, Path]:
    """Make kits of an export's files.

    Args:
        export: The export's folder.
        names: Keys of ``KITS``.
        out: Where the kits' folders are put; by default the export's folder.

    Returns:
        The folder of each kit: ``kit-<name>``, replaced if it was an unchanged kit.

    Raises:
        InputError: If the export is damaged, or a kit's folder holds anything else.
        MissingDependencyError: If something that a kit needs is missing; nothing is written then.
    """
    require_kits(names)
    artifacts, recommended = _files(export)
    folders = kit_folders(out or export, names)
    for name, folder in folders.items():
        with kit_made_whole(folder) as work:
            KITS[name].write(work, artifacts, recommended)
    return folders


def is_own_kit(path: Path) -> bool:
    """Tell whether a path is that of a kit as it was written."""
    name = path.name.removeprefix(PREFIX)
    return path.name.startswith(PREFIX) and name in KITS and is_unchanged_kit(path)


def _files(export: Path) -> tuple[list[Artifact], str]:
    """Return the files of an export, and the name of the recommended one."""
    report = read_json(export / "report.json")
    recommended = report.get("recommended") if isinstance(report, dict) else None
    artifacts = [read_artifact(file) for file in model_files(export)]
    for artifact in artifacts:
        artifact.require_plain("a kit")
    if recommended not in [a.path.name for a in artifacts]:
        raise InputError(f"{export} is damaged: its recommended model file is missing", fix="export again")
    return artifacts, str(recommended)
