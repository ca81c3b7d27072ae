"""All folders and cameras of a server and what gets their answers: started when it is ready, stopped before it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qdeploy.core.errors import MissingDependencyError
from qdeploy.serve.models import Event
from qdeploy.serve.service import Service
from qdeploy.serve.sources.answers import AnswerFile
from qdeploy.serve.sources.camera import Camera, find_ffmpeg
from qdeploy.serve.sources.config import Broker, SourcesConfig
from qdeploy.serve.sources.desk import Desk
from qdeploy.serve.sources.watch import Remembered, Watch

if TYPE_CHECKING:
    from qdeploy.serve.sources.mqtt import Publisher

LONGEST_END_S = 5.0


class Sources:
    """What a server classifies besides what it is sent.

    Raises:
        MissingDependencyError: If ffmpeg or paho-mqtt is needed and not installed.
    """

    def __init__(self, config: SourcesConfig, event: Event) -> None:
        self._config = config
        self._event = event
        self._file: AnswerFile | None = None
        self._desk: Desk | None = None
        self._running: list[Watch | Camera] = []
        if config.camera:
            find_ffmpeg()
        self._publisher = _publisher(config.broker, event) if config.broker else None

    def start(self, service: Service) -> None:
        """Begin, with a service that answers.

        Raises:
            RefusedError: If it has no such model.
            InputError: If the file of the answers cannot be used.
        """
        c = self._config
        if not c.any:
            return
        service.models.find(c.model)
        if c.answer_file is not None:
            self._file = AnswerFile(c.answer_file.absolute(), self._event)
        if self._publisher is not None:
            self._publisher.start()
        self._desk = Desk(service, c, self._file, self._publisher, self._event)
        for folder in c.watch:
            remembered = Remembered()
            if self._file is not None:
                remembered.fill(self._file.stamps())
            self._running.append(Watch(str(folder), self._desk, remembered, c.watch_new_only))
        self._running += [Camera(inlet, c.every_s, self._desk) for inlet in c.inlets]
        for source in self._running:
            source.start()

    def stop(self) -> None:
        """Let every source finish its image, and bring the answers to the disk and to the broker."""
        if self._desk is None:
            return
        self._desk.stop.set()
        end = time.monotonic() + LONGEST_END_S
        for source in self._running:
            source.join(max(0.0, end - time.monotonic()))
        if self._publisher is not None:
            self._publisher.close()
        if self._file is not None:
            self._file.close()


def _publisher(broker: Broker, event: Event) -> Publisher:
    try:
        from qdeploy.serve.sources.mqtt import Publisher
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "paho":
            raise
        raise MissingDependencyError(
            "MQTT needs paho-mqtt, which is not installed", command="pip install 'qdeploy[mqtt]'"
        ) from error
    return Publisher(broker, event)
