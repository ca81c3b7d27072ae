"""The display of a long classification: a progress bar, and a line at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from qdeploy.cli.output import Bar, complain, note, quiet
from qdeploy.core.drift import Tally
from qdeploy.core.words import counted

if TYPE_CHECKING:
    from qdeploy.core.card import Card
    from qdeploy.runtime.predict import Answer

REDRAW_S = 0.1
SHOWN_LABELS = 5


class Watch:
    """Counts answers. The bar is shown where no answers are printed on the same terminal."""

    def __init__(self, images: Sequence[str], printing: bool, card: Card | None = None) -> None:
        """Begin.

        Args:
            images: The words of the command line; counted if there is a bar.
            printing: Whether a line per image goes to stdout.
            card: The model's card, if the answers are to be compared with those to its validation images.
        """
        self._drift = Tally(card.reference) if card and card.reference else None
        self._classes = card.labels if card else ()
        self.total = 0
        self.done = self.failed = 0
        self.labels: Counter[str] = Counter()
        self.bar = Bar("classifying")
        self._shown = sys.stderr.isatty() and not quiet() and not (printing and sys.stdout.isatty())
        self._images = images
        self._next = self._begin = time.perf_counter()

    def __enter__(self) -> Watch:
        if self._shown:
            from qdeploy.runtime.inputs import STDIN, expand

            if list(self._images) != [STDIN]:  # how many images a list has is known when it ends
                self.total = sum(1 for _ in expand(self._images))
            self.bar.__enter__()
        self._next = self._begin = time.perf_counter()
        return self

    def see(self, answer: Answer) -> None:
        """Count an answer."""
        self.done += 1
        if answer.prediction is None:
            self.failed += 1
        else:
            self.labels[answer.prediction.label] += 1
            if self._drift is not None:
                self._drift.see(answer.prediction)
        if self._shown and (now := time.perf_counter()) >= self._next:
            self._next = now + REDRAW_S
            of = f" of {self.total:,}" if self.total else ""
            text = f"{self.done:,}{of} images, {self.done / (now - self._begin):,.0f}/s"
            self.bar.update(self.done, self.total or None, text)

    def line(self, text: str) -> None:
        """Print on stderr what went wrong, above the bar."""
        if self._shown:
            self.bar.line(text)
        else:
            complain(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._begin
        if self._shown:
            self.bar.__exit__(kind, error, trace)
        if kind is None:
            best = ", ".join(f"{label} {n:,}" for label, n in self.labels.most_common(SHOWN_LABELS))
            more = len(self.labels) - SHOWN_LABELS
            others = f" and {counted(more, 'more label')}" if more > 0 else ""
            failed = f", {self.failed:,} of them not readable" if self.failed else ""
            images = counted(self.done, "image")
            note(f"{images}{failed}, {self.done / seconds:,.0f} a second: {best or 'no answer'}{others}")
            self._tell_drift()

    def _tell_drift(self) -> None:
        """Say whether the answers are like those to the validation images, if there are enough of them."""
        found = self._drift and self._drift.verdict(self._classes)
        if found:
            note(f"{'drift' if found.differs else 'no drift'}: {found.text(f'the {found.n:,} answers')}")
