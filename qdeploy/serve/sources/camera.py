"""A camera: its newest frame is classified again and again, and it is connected again whenever it is lost."""

from __future__ import annotations

import math
import random
import shutil
import time
from threading import Thread

from qdeploy.core.errors import MissingDependencyError
from qdeploy.serve.service import guarded
from qdeploy.serve.sources.desk import Desk, StoppingError
from qdeploy.serve.sources.ffmpeg import Ffmpeg
from qdeploy.serve.sources.inlet import Inlet

SOURCE = "camera"
LONGEST_STEP_S = 2.0
"""A camera that is asked for a frame less often still gives one so often: it shows that it is there."""
START_S, STALL_S = 20.0, 10.0
"""How long the first frame, and any other, may take before the connection is given up."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
"""How long after a failure it is tried again: twice as long each time."""
_BLINK_S = 0.2


def find_ffmpeg() -> str:
    """Return the path of ffmpeg.

    Raises:
        MissingDependencyError: If there is none.
    """
    found = shutil.which("ffmpeg")
    if found is None:
        raise MissingDependencyError("a camera needs ffmpeg, which is not installed", command="apt install ffmpeg")
    return found


class Camera:
    """Watches one camera in its own thread."""

    def __init__(
        self, inlet: Inlet, every_s: float, desk: Desk, start_s: float = START_S, stall_s: float = STALL_S
    ) -> None:
        """Find ffmpeg.

        Raises:
            MissingDependencyError: If there is none.
        """
        self._inlet = inlet
        self._every_s = every_s
        self._keep = math.ceil(every_s / LONGEST_STEP_S)
        self._desk = desk
        self._start_s = start_s
        self._stall_s = stall_s
        self._ffmpeg = find_ffmpeg()
        self._failures = 0
        self._connected = False
        self._thread = Thread(target=self._run, name=f"camera {inlet.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end after the desk was told to stop."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        stop = self._desk.stop
        while not stop.is_set():
            begin = time.monotonic()
            guarded(self._connect, self._desk.event)
            if self._failures:
                wait = min(FIRST_WAIT_S * 2.0 ** min(self._failures - 1, 10), LONGEST_WAIT_S) * random.uniform(0.5, 1)
            else:  # the end of a file, or an address that gives one picture
                wait = begin + self._every_s - time.monotonic()
            stop.wait(max(wait, _BLINK_S))

    def _connect(self) -> None:
        """Classify frames until no more come."""
        self._failures += 1
        run = Ffmpeg(
            self._ffmpeg, self._inlet.options, self._every_s / self._keep, self._keep, self._inlet.without_secrets
        )
        silent: str | None = None
        try:
            silent = self._classify_from(run)
        finally:
            why = run.close()
        if self._desk.stop.is_set():
            return
        if silent or why or not run.frames:
            self._lose(silent or why or "there was no frame")
        else:
            self._failures = 0

    def _classify_from(self, run: Ffmpeg) -> str | None:
        """Classify what comes; return why it was given up, or None if it ended or the server stops."""
        while not (run.ended or self._desk.stop.is_set()):
            frame = run.take(_BLINK_S)
            patience_s = self._stall_s if run.frames else self._start_s
            if frame is not None:
                self._greet()
                self._classify(frame)
            elif time.monotonic() - run.last > patience_s:
                return f"no frame for {patience_s:g} s"
        return None

    def _classify(self, frame: bytes) -> None:
        try:
            self._desk.hand_out(self._desk.ask(SOURCE, self._inlet.name, frame, patient=False))
        except StoppingError as error:  # the next frame will do
            self._desk.event("frame-left-out", level="warning", camera=self._inlet.name, why=str(error))

    def _greet(self) -> None:
        self._failures = 0
        if not self._connected:
            self._connected = True
            self._desk.event("camera-connected", camera=self._inlet.name, place=self._inlet.place)

    def _lose(self, why: str) -> None:
        self._connected = False
        self._failures = max(self._failures, 1)
        name, place = self._inlet.name, self._inlet.place
        self._desk.event("camera-lost", level="error", camera=name, place=place, failures=self._failures, why=why)
