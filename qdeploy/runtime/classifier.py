"""Images in, labels out: the object that ``qdeploy.load`` returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from qdeploy.core.artifact import SHIPPED, Artifact, instead_of, newest_export, read_artifact
from qdeploy.core.confidence import UNKNOWN, Cut, score
from qdeploy.core.encryption import Key
from qdeploy.core.errors import ArtifactError, ImageError
from qdeploy.core.files import read_json
from qdeploy.core.machine import native_target
from qdeploy.runtime.device import Setup, setup_for
from qdeploy.runtime.session import Rows, open_session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from qdeploy.core.drift import DriftWatch

ImageLike: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8]"


@dataclass(frozen=True)
class Ranked:
    """One label with its probability."""

    label: str
    index: int
    probability: float
    """Probability of the label, in [0, 1]."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    labels: tuple[str, ...]
    scores: Sequence[float]
    """The probability of each label, in [0, 1], summing to 1."""
    score: float | None = None
    """How much the image is like those that the model was made with; None if the model calls nothing unknown."""
    unknown: bool = False
    """Whether ``score`` is below the model's threshold."""
    energy: float | None = None
    """The score, whether or not the model calls anything unknown, for ``DriftWatch``; None of a server's answer."""

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """The probability of each label as an array ``[K]``."""
        import numpy as np

        return np.asarray(self.scores, np.float32)

    @property
    def index(self) -> int:
        """Class number of the most probable label."""
        return self.scores.index(max(self.scores))

    @property
    def label(self) -> str:
        """The most probable label, or ``unknown``."""
        return UNKNOWN if self.unknown else self.would_be

    @property
    def would_be(self) -> str:
        """The most probable label, also of an unknown image."""
        return self.labels[self.index]

    @property
    def probability(self) -> float:
        """Probability of the most probable label, in [0, 1]."""
        return max(self.scores)

    def top(self, k: int) -> list[Ranked]:
        """Return the k most probable labels, best first."""
        best = sorted(range(len(self.scores)), key=self.scores.__getitem__, reverse=True)[:k]
        return [Ranked(self.labels[i], i, self.scores[i]) for i in best]

    def told(self) -> dict[str, Any]:
        """Return what JSON says beside the labels: nothing of a model that calls nothing unknown."""
        if self.score is None:
            return {}
        return {"label": self.label, "unknown": self.unknown, "score": round(self.score, 4)}


def predictions(
    labels: tuple[str, ...], logits: Rows, probabilities: Rows, cut: Cut | None = None, temperature: float = 1.0
) -> list[Prediction | ImageError]:
    """Return the prediction of each row of logits and probabilities ``[B, K]``, or why there is none.

    NaN has no place in an order: ranked, it would give the label of whichever class is compared last.

    Args:
        labels: The K labels.
        logits: What an unknown image is told by.
        probabilities: What the labels are ranked by.
        cut: Which images are unknown; None for a model that answers all.
        temperature: What the graph divides the logits by.
    """
    return [_judged(labels, *rows, cut, temperature) for rows in zip(logits, probabilities, strict=True)]


def _judged(
    labels: tuple[str, ...], logits: list[float], row: list[float], cut: Cut | None, temperature: float
) -> Prediction | ImageError:
    if not isfinite(sum(row)):
        return not_finite()
    energy = score(max(logits), max(row), temperature)
    if cut is None:
        return Prediction(labels, row, energy=energy if isfinite(energy) else None)
    return Prediction(labels, row, energy, energy < cut.threshold, energy) if isfinite(energy) else not_finite()


def not_finite() -> ImageError:
    """Return what is said of an image to which a model gives NaN or infinity."""
    return ImageError(
        "the model's answer to it is not finite",
        "not-finite",
        fix="the model file is not sound for this image: compare with its fp32 file, or export it again",
    )


class Classifier:
    """An opened artifact with its own preprocessing and labels. Safe to call from several threads.

    Leaving a ``with`` closes it.

    Its ``cut`` says which images are unknown, None if none is. Its ``note`` says which file was taken for this CPU,
    whether a ``device.json`` was used, or why not, and what else is particular to this machine; None if nothing is.
    """

    def __init__(
        self,
        artifact: Artifact,
        engine: str = "ort",
        threads: int | None = None,
        selftest: bool = True,
        note: str | None = None,
        formats: Iterable[str] | None = None,
        abstain: bool = True,
    ) -> None:
        self.artifact = artifact
        self.card = artifact.card
        self.cut = self.card.cut if abstain else None
        if formats is not None:
            self.card = replace(self.card, preprocessing=self.card.preprocessing.taking(formats))
        self.session = open_session(artifact, engine, threads, selftest)
        self.note = "; ".join(filter(None, (note, self.session.note))) or None

    @overload
    def __call__(self, image: ImageLike) -> Prediction: ...

    @overload
    def __call__(self, image: list[ImageLike]) -> list[Prediction]: ...

    def __call__(self, image: ImageLike | list[ImageLike]) -> Prediction | list[Prediction]:
        """Classify one image (path, file's bytes, PIL image or uint8 array ``[H, W, 3]``) or a list of them.

        Raises:
            ImageError: If an image cannot be read, or the model's answer to it is not finite.
        """
        if not isinstance(image, list):
            return self.classify_bytes(self._preprocess(image), 1)[0]
        return self.classify_bytes(b"".join([self._preprocess(i) for i in image]), len(image))

    def classify(self, images_BSSC: NDArray[np.uint8]) -> list[Prediction]:
        """Classify preprocessed images ``[B, S, S, 3]``.

        Raises:
            ImageError: If the model's answer to one is not finite.
        """
        logits, probabilities = self.session.infer(images_BSSC)
        return _all_of(self._predictions(logits.tolist(), probabilities.tolist()))

    def classify_bytes(self, images: bytes, count: int) -> list[Prediction]:
        """Classify so many preprocessed images, whose bytes follow each other; numpy is not needed.

        Raises:
            ImageError: If the model's answer to one is not finite.
        """
        return _all_of(self.answers(images, count))

    def answers(self, images: bytes, count: int) -> list[Prediction | ImageError]:
        """Do as ``classify_bytes`` does, and give for each image its prediction, or why there is none."""
        logits, probabilities = self.session.infer_bytes(images, count)
        return self._predictions(logits, probabilities)

    def watch_drift(self, window: int | None = None) -> DriftWatch | None:
        """Return what tells whether later answers are like those to the validation images; give it each answer.

        Args:
            window: Answers that are judged together; by default 500.

        Returns:
            The watch; None if the card does not say what those were, as of files of earlier versions.

        Raises:
            InputError: If the window is too small.
        """
        if self.card.reference is None:
            return None
        from qdeploy.core.drift import WINDOW, DriftWatch  # which the start of a program need not wait for

        return DriftWatch(self.card.reference, self.card.labels, WINDOW if window is None else window)

    def close(self) -> None:
        """Free the model; a call raises afterwards."""
        self.session.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _predictions(self, logits: Rows, probabilities: Rows) -> list[Prediction | ImageError]:
        return predictions(self.card.labels, logits, probabilities, self.cut, self.card.temperature)

    def _preprocess(self, image: ImageLike) -> bytes:
        return self.card.preprocessing.to_bytes(Path(image) if isinstance(image, str) else image)


def _all_of(answers: list[Prediction | ImageError]) -> list[Prediction]:
    found = [answer for answer in answers if isinstance(answer, Prediction)]
    if len(found) < len(answers):
        place, error = next((i, a) for i, a in enumerate(answers) if isinstance(a, ImageError))
        if len(answers) == 1:
            raise error
        raise ImageError(f"image {place} of {len(answers)}, from 0: {error}", error.reason)
    return found


def find_artifact(given: Path | None = None) -> Path:
    """Find the model file to use: the given file or export folder, the newest export, or the shipped model.

    Of an export's folder the file for this CPU is taken.

    Raises:
        ArtifactError: If there is none.
    """
    return _found(given)[0]


def recommended_file(folder: Path) -> Path:
    """Return the file of an export that suits this machine's CPU.

    It is the file that the export recommends, unless the export also made one for this kind of CPU elsewhere.
    """
    return _fitting(folder)[0]


def find_setup(given: Path | None = None, engine: str | None = None, threads: int | None = None) -> Setup:
    """Find the model file, as ``find_artifact`` does, and what ``qdeploy tune`` found best for it on this machine.

    Raises:
        ArtifactError: If there is none.
        InputError: If the ``device.json`` beside it is damaged.
    """
    named = given is not None and not given.is_dir()
    path, note = _found(given)
    setup = setup_for(path, named, engine, threads)
    return replace(setup, note="; ".join(filter(None, (note, setup.note)))) if note and setup.path == path else setup


def read_setup(setup: Setup, trusted: Sequence[Path] | None = None, key: Key | None = None) -> Artifact:
    """Read a setup's model file, as ``read_artifact`` does.

    A library beside it is not loaded because a ``device.json`` says ``native``: whoever makes a folder can write one.
    """
    return replace(read_artifact(setup.path, trusted=trusted, key=key), library=setup.asked)


def _found(given: Path | None) -> tuple[Path, str | None]:
    """Find the model file, and say why if it is not the one that its export recommends."""
    if given is None:
        return _fitting(newest_export() or SHIPPED)
    if given.is_dir():
        return _fitting(given)
    if not given.exists():
        raise ArtifactError(f"the model file {given} does not exist", fix="`qdeploy export` makes one")
    return given, None


def _fitting(folder: Path) -> tuple[Path, str | None]:
    """Find the file of an export that suits this CPU, and say why if it is not the one that the export recommends."""
    if not (folder / "report.json").is_file():
        raise ArtifactError(f"{folder} is not an export: it has no report.json", fix=instead_of(folder))
    here, note = native_target(), None
    try:
        report = read_json(folder / "report.json")
        name = report["recommended"]
        for_here = [a["path"] for a in report.get("artifacts", ()) if a["target"] == here]
        measured = any(i["native"] for i in report.get("int8", ()) if i["target"] == here)
        if for_here and not measured:
            note = f"{Path(for_here[0]).name} is taken, which was made for this kind of CPU ({here}), instead of {name}"
            name = for_here[0].replace("\\", "/").rpartition("/")[2]
    except (LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder} is damaged: its report.json names no model file", fix="export again") from error
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise ArtifactError(f"{folder} is damaged: its recommended model file is missing", fix="export again")
    return folder / name, note


def load(
    model: str | Path | None = None,
    *,
    engine: str | None = None,
    threads: int | None = None,
    selftest: bool = True,
    formats: Iterable[str] | None = None,
    abstain: bool = True,
    trusted_keys: Iterable[str | Path] | None = None,
    key: Key | None = None,
) -> Classifier:
    """Open a model file for classification; costs no torch.

    Args:
        model: A model file or an export's folder; by default the model that ships in the package.
        engine: The inference engine; by default what ``qdeploy tune`` chose on this machine, else ``ort``.
        threads: Threads of one inference; by default what ``qdeploy tune`` chose, else 1 for small models and the
            usable cores for others.
        selftest: Whether to check the file's goldens.
        formats: Which image files are taken, such as ``["jpeg", "png"]``; by default all that can be read.
        abstain: Whether images below the file's threshold, if it has one, are ``unknown``.
        trusted_keys: Files of public keys, one of which must have signed the model file; by default those that the
            environment names in ``QDEPLOY_TRUSTED_KEYS``, and without any a file needs no signature.
        key: The 32 bytes that decrypt an encrypted file, or a function that gives them; by default the key that the
            environment names in ``QDEPLOY_MODEL_KEY_COMMAND`` or ``QDEPLOY_MODEL_KEY``.
    """
    keys = None if trusted_keys is None else tuple(map(Path, trusted_keys))
    setup = find_setup(SHIPPED if model is None else Path(model), engine, threads)
    artifact = read_setup(setup, keys, key)
    return Classifier(artifact, setup.engine, setup.threads, selftest, setup.note, formats, abstain)
