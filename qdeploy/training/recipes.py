"""What a run does, as one frozen configuration; a recipe is a function that returns one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qdeploy.core.errors import InputError, near_miss
from qdeploy.data.embedded import NAME as EMBEDDED


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run."""

    model: str = "nano"
    """A name of ``qdeploy models``."""
    data: str = EMBEDDED
    """A published data set or a folder with a sub-folder per class."""
    recipe: str = "small"
    epochs: int = 36
    """Passes over the training images; 36 over the embedded 2,000 take about four minutes on 2 cores."""
    batch_size: int = 64
    lr: float = 2e-3
    """Base learning rate of AdamW at the start of the cosine."""
    weight_decay: float = 0.05
    schedule: Literal["cosine", "confidence"] = "cosine"
    """cosine: warm-up and one cosine to zero; confidence: the paper's controller (training/dynamics.py)."""
    warmup_share: float = 0.03
    """Share of all steps with a rising learning rate; only for the cosine."""
    label_smoothing: float = 0.0
    """Only for the cosine; the controller sets its own."""
    ema_decay: float = 0.998
    """Decay per step of the averaged weights; only for the cosine."""
    deep_supervision: float = 0.0
    """Weight of a loss on the SOTA head's transformer path alone, which starts with almost no gradient."""
    confidence_from_label: bool = False
    """The paper's literal head confidence in training; never used in validation, where it would leak the label."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    flip: bool = True
    """Mirror half of the images."""
    shift: int = 4
    """Move images by up to this many pixels, repeating the border."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision; auto takes bf16 where the device has it, fp16 on other GPUs, else none."""

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= 100_000:
            raise InputError(f"--epochs must be between 1 and 100000, found {self.epochs}")
        if not 2 <= self.batch_size <= 65_536:
            raise InputError(f"--batch-size must be between 2 and 65536, found {self.batch_size}")
        if not 0 < self.lr < 1:
            raise InputError(f"--lr must be between 0 and 1, found {self.lr}")
        if not 0 <= self.shift < 32:
            raise InputError(f"shift must be between 0 and 31 pixels, found {self.shift}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed must be between 0 and {2**32 - 1}, found {self.seed}")
        if self.amp not in ("auto", "off", "bf16", "fp16"):
            raise InputError(f"--amp must be auto, off, bf16 or fp16, found '{self.amp}'")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-ready values."""
        return asdict(self)


def small(**overrides: Any) -> TrainConfig:
    """Best found for nano and micro on small data: AdamW, one cosine, light augmentation, EMA."""
    return TrainConfig(**{"recipe": "small", **overrides})


def confidence(**overrides: Any) -> TrainConfig:
    """The paper's confidence controller, its constants scaled to the run (paper, III.C)."""
    return TrainConfig(
        **{"recipe": "confidence", "schedule": "confidence", "lr": 5e-4, "weight_decay": 5e-5, **overrides}
    )


RECIPES: dict[str, Callable[..., TrainConfig]] = {"small": small, "confidence": confidence}


def config_from_recipe(name: str, **overrides: Any) -> TrainConfig:
    """Build a configuration from a recipe's name; fields given as None keep the recipe's value.

    Raises:
        InputError: If there is no such recipe or a value is out of range.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe named '{name}'{near_miss(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name](**{k: v for k, v in overrides.items() if v is not None})
