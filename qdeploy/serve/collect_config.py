"""The configuration of what a server keeps of the images that it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qdeploy.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Which images are kept, and how many."""

    folder: Path
    """Where; it is made, and what is in it from before counts."""
    most_images: int = 1000
    """Images in the folder, from which on no more are kept: a morning's labelling."""
    most_bytes: int = 256 * 2**20
    """The same in bytes, of images and what is known of them."""
    below: float = 0.8
    """An answer whose probability is lower is uncertain."""
    share: float = 0.01
    """Share of the other images that is kept by chance: of sure answers, too, some are wrong."""

    def __post_init__(self) -> None:
        for option, value, low, high in (
            ("collect_images", self.most_images, 1, 1_000_000),
            ("collect_mb", self.most_bytes / 2**20, 0.01, 1_000_000),
            ("collect_below", self.below, 0, 1),
            ("collect_share", self.share, 0, 1),
        ):
            if not low <= value <= high:
                raise InputError(f"`{option}` must be between {low} and {high}", found=value)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"cannot collect images in {self.folder}: it is a file, not a folder")
