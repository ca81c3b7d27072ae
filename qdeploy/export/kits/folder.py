"""A kit's folder: made whole, with the checksum of every file, and replaced only if it is as it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from string import Template

from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of, write_bytes
from qdeploy.core.sums import SUMS, read_sums
from qdeploy.core.whole import folder_made_whole

PYTHON_CACHE = "__pycache__"
"""What Python leaves beside a file that it ran: no change of a kit."""


@contextmanager
def kit_made_whole(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes a kit's, with its sums, if the block succeeds.

    Args:
        out: The kit's folder; replaced if it is an unchanged kit.

    Raises:
        InputError: If ``out`` holds anything else.
    """
    if out.exists() and not is_unchanged_kit(out):
        raise InputError(f"{out} is no kit, or was changed, and would be replaced; move it away first")
    with folder_made_whole(out) as folder:
        yield folder
        lines = (f"{digest}  {name}\n" for name, digest in sorted(_digests(folder).items()))
        write_bytes(folder / SUMS, "".join(lines).encode())


def is_unchanged_kit(folder: Path) -> bool:
    """Tell whether a folder holds a kit as it was written, and nothing else."""
    try:
        return _digests(folder) == read_sums(folder)
    except (OSError, ValueError):
        return False


def filled(template: Path, words: Mapping[str, object]) -> bytes:
    """Return a template's text with words in place of their names."""
    return Template(template.read_text()).substitute(words).encode()


def fill_templates(templates: Path, folder: Path, words: Mapping[str, object]) -> None:
    """Copy the files of a folder; those that end in ``.in`` are templates."""
    for template in filter(Path.is_file, templates.iterdir()):  # Python may have left a cache there
        data = filled(template, words) if template.suffix == ".in" else template.read_bytes()
        write_bytes(folder / template.name.removesuffix(".in"), data)


def _digests(folder: Path) -> dict[str, str]:
    """Return the checksum of every file below a folder, but for the sums; an empty text for what is no file."""
    paths = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    own = {name: p for name, p in paths.items() if name != Path(SUMS) and PYTHON_CACHE not in name.parts}
    return {name.as_posix(): sha256_of(p.read_bytes()) if p.is_file() else "" for name, p in own.items()}
