"""Where folders and cameras hand in images, and from where the answers go to a file and to a broker."""

from __future__ import annotations

from threading import Event as Flag
from typing import TYPE_CHECKING

from qdeploy.serve.models import Event
from qdeploy.serve.refusal import RefusedError
from qdeploy.serve.service import Service
from qdeploy.serve.sources.answers import AnswerFile, Record, Stamp, record, with_error, with_prediction, with_stamp
from qdeploy.serve.sources.config import SourcesConfig

if TYPE_CHECKING:
    from qdeploy.serve.sources.mqtt import Publisher

FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 0.5
"""How long it takes to the next attempt where the queue or the disk is full: twice as long each time."""


class StoppingError(Exception):
    """The server stops before there is an answer, or before it is written."""


class Desk:
    """Classifies images through the server's queue. Safe to use from several threads."""

    def __init__(
        self,
        service: Service,
        config: SourcesConfig,
        file: AnswerFile | None,
        publisher: Publisher | None,
        event: Event,
    ) -> None:
        self.event = event
        self.stop = Flag()
        """Set when the server stops."""
        self._service = service
        self._config = config
        self._file = file
        self._publisher = publisher
        self._unwritten = 0

    @property
    def model(self) -> tuple[str, int]:
        """Name and version of the model that answers."""
        served = self._service.models.find(self._config.model)
        return served.name, served.version

    def ask(self, source: str, image: str, data: bytes, *, patient: bool) -> Record:
        """Classify an encoded image.

        Args:
            source: Kind of the source.
            image: What the answer calls the image.
            data: An image file's bytes.
            patient: Whether to try again while the server has no place for it.

        Raises:
            StoppingError: If the server stops, or, unless ``patient``, has no place.
        """
        wait = FIRST_WAIT_S
        while True:
            begun = record(source, image, *self.model)
            try:
                prediction, times = self._service.classify(data, self._config.model)
            except RefusedError as refusal:
                if refusal.status not in (503, 504):
                    return with_error(begun, str(refusal), refusal.reason)
                if not patient or self.stop.wait(wait):
                    raise StoppingError(str(refusal)) from refusal
                wait = min(2 * wait, LONGEST_WAIT_S)
                continue
            return with_prediction(begun, prediction, times, self._config.top)

    def hand_out(self, answer: Record, stamp: Stamp | None = None) -> None:
        """Write an answer to the file, then publish it.

        An answer to a file is held back while the disk is full, so that its image is not forgotten; without a
        stamp it is left out then, since a camera has a next one.

        Raises:
            StoppingError: If the server stops before it is written.
        """
        wait = FIRST_WAIT_S
        while not self._written(answer if stamp is None else with_stamp(answer, stamp)) and stamp is not None:
            if self.stop.wait(wait):
                raise StoppingError("the answer cannot be written")
            wait = min(2 * wait, LONGEST_WAIT_S)
        if self._publisher is not None:
            self._publisher.publish(answer)

    def _written(self, answer: Record) -> bool:
        if self._file is None:
            return True
        try:
            self._file.add(answer)
        except OSError as error:
            if not self._unwritten:
                why = error.strerror or str(error)
                self.event("answers-not-written", level="error", file=str(self._file.path), why=why)
            self._unwritten += 1
            return False
        if self._unwritten:
            self.event("answers-written-again", file=str(self._file.path), failed=self._unwritten)
            self._unwritten = 0
        return True
