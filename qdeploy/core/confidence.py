"""What a card says of a model's confidence: its temperature, and the score below which an image is unknown.

Standard library alone: every start of ``qdeploy predict`` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qdeploy.core.reference import Reference

UNKNOWN = "unknown"
"""The label of an image whose score is below the threshold."""
LEAST = 1e-38
"""Stands for a largest probability of 0, which no softmax gives."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How far probabilities can be taken at their word, on labelled images; less is better in all of it."""

    ece: float
    """Expected calibration error, 15 bins of equal numbers of images: the mean distance, in [0, 1], between what the
    model says of its answers and the share of them that is right."""
    ece_ci95: tuple[float, float]
    """95 % bootstrap interval of ``ece``."""
    nll: float
    """Mean negative log-likelihood of the true label, in nats."""
    brier: float
    """Mean squared distance of the probabilities from the truth, summed over the classes, in [0, 2]."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "ece_ci95": list(self.ece_ci95)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Reliability:
        """Rebuild from JSON.

        Raises:
            ValueError: If a field is no finite number.
        """
        low, high = (_number("ece_ci95", v) for v in fields["ece_ci95"])
        return cls(**{name: _number(name, fields[name]) for name in ("ece", "nll", "brier")}, ece_ci95=(low, high))


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """How a file's probabilities were calibrated, and which images it does not answer."""

    temperature: float = 1.0
    """The graph divides the logits by it before their softmax; 1 leaves them alone."""
    images: int
    """Validation images that set temperature and threshold."""
    reason: str
    """Why the temperature is what it is, in words."""
    coverage: float | None = None
    """Share of the validation images, in (0, 1), that keep their label; None without a threshold."""
    threshold: float | None = None
    """An image with a lower score is unknown; see ``score``."""
    test_images: int = 0
    """Test images that ``before``, ``after`` and the two below were measured on."""
    before: Reliability | None = None
    """On the test images with temperature 1."""
    after: Reliability | None = None
    """On the test images with ``temperature``."""
    test_coverage: float | None = None
    """Share of the test images that keep their label."""
    test_top1_answered: float | None = None
    """Top-1 accuracy on those, in percent."""
    before_sha256: str | None = None
    """SHA-256 of the file before `qdeploy calibrate` wrote it anew: what was made from it names that."""
    reference: Reference | None = None
    """Its answers to the validation images, for comparison with later ones; None in files of earlier versions, of too
    few images, and where an answer is not finite."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        measured = {"before": self.before, "after": self.after, "reference": self.reference}
        return {**asdict(self), **{name: m.to_dict() if m else None for name, m in measured.items()}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Confidence:
        """Rebuild from ``to_dict``.

        Raises:
            ValueError: If a field is of another type, or out of range.
        """
        numbers = ("coverage", "threshold", "test_coverage", "test_top1_answered")
        before, after, source = (fields.get(k) for k in ("before", "after", "before_sha256"))
        reference = fields.get("reference")
        made = cls(
            temperature=_number("temperature", fields["temperature"]),
            images=int(fields["images"]),
            reason=str(fields["reason"]),
            **{k: None if fields.get(k) is None else _number(k, fields[k]) for k in numbers},
            test_images=int(fields.get("test_images", 0)),
            before=None if before is None else Reliability.from_dict(before),
            after=None if after is None else Reliability.from_dict(after),
            before_sha256=None if source is None else str(source),
            reference=None if reference is None else Reference.from_dict(reference),
        )
        if made.temperature <= 0:
            raise ValueError(f"temperature must be positive, found {made.temperature}")
        if (made.threshold is None) != (made.coverage is None):
            raise ValueError("threshold and coverage belong together")
        return made


@dataclass(frozen=True)
class Cut:
    """The rule by which an opened model calls images unknown."""

    threshold: float
    temperature: float

    def score(self, logits: Sequence[float], probabilities: Sequence[float]) -> float:
        """Return an image's score; see ``score``."""
        return score(max(logits), max(probabilities), self.temperature)


def score(logit: float, probability: float, temperature: float) -> float:
    """Return how much an image is like those that the model was made with; the higher, the more.

    It is the energy at the temperature, ``T logsumexp(logits / T)`` (Liu et al., 2020: "Energy-based
    Out-of-distribution Detection", there with a minus), which follows from two maxima and one logarithm.

    Args:
        logit: The largest logit.
        probability: The largest probability, of ``softmax(logits / temperature)``.
        temperature: What the graph divides the logits by.
    """
    return logit - temperature * math.log(max(probability, LEAST))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"confidence: '{name}' must be a finite number, found {value!r:.40}")
    return float(value)
