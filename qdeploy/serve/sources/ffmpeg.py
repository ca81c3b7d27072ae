"""One run of ffmpeg: a camera's frames as BMP images, through a pipe.

A BMP holds the frame as it is and in its own size, says at its beginning how long it is, and costs nothing to make:
nothing is lost before our own preprocessing, the size need not be known, and frames go the way of every image.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread
from typing import IO

from qdeploy.core.image_formats import MAX_FILE_BYTES

_HEAD = 6
"""Bytes of a BMP that say what it is and how long."""
_END_S = 1.0
"""How long ffmpeg may take to say good-bye to the camera."""
_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"  # PR_SET_PDEATHSIG, SIGKILL
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)
"""Becomes ffmpeg after asking the kernel to end it with the thread that started it: nothing else ends a process that
waits for a silent camera when ours is killed. Asked for in the child of a process with threads it could hang."""


class Ffmpeg:
    """Reads frames as they come and keeps the newest until it is taken: what is too slow gets fewer, never old ones.

    Must be closed by the thread that made it.
    """

    def __init__(
        self, program: str, given: Sequence[str], step_s: float, keep: int, tell: Callable[[str], str]
    ) -> None:
        """Start.

        Args:
            program: Path of ffmpeg.
            given: Its options for the input.
            step_s: Seconds from one frame to the next; those between are not converted.
            keep: Of how many of these one is kept.
            tell: Makes a text of ffmpeg's into one that may be told.
        """
        self.frames = 0
        """Frames that came."""
        self.last = time.monotonic()
        """When the last came, or ffmpeg was started."""
        self._keep = keep
        self._tell = tell
        self._said: deque[str] = deque(maxlen=3)
        self._problem: str | None = None
        self._newest: bytes | None = None
        self._ended = False
        self._changed = Condition()
        command = _with_parent([program, *_options(given, step_s)])
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._threads = [Thread(target=work, daemon=True) for work in (self._read, self._listen)]
        for thread in self._threads:
            thread.start()

    def take(self, timeout_s: float) -> bytes | None:
        """Return the newest frame, once; None if none comes within that time or any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._ended, timeout_s)
            frame, self._newest = self._newest, None
        return frame

    @property
    def ended(self) -> bool:
        """Whether no more frames come."""
        return self._ended and self._newest is None

    def close(self) -> str | None:
        """End it, and return what went wrong; None if it came to the end of its input."""
        own_end = self._ended and self._problem is None
        if not own_end:
            self._process.terminate()
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for thread in self._threads:
            thread.join(_END_S)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        if self._problem:
            return self._problem
        return None if own_end and code == 0 else "; ".join(self._said) or f"ffmpeg ended with code {code}"

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        try:
            while (frame := self._frame(stream)) is not None:
                self.last = time.monotonic()
                self.frames += 1
                if self.frames % self._keep == 1 % self._keep:
                    with self._changed:
                        self._newest = frame
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _frame(self, stream: IO[bytes]) -> bytes | None:
        head = stream.read(_HEAD)
        if len(head) < _HEAD:
            return None
        size = int.from_bytes(head[2:], "little")
        if head[:2] != b"BM" or size <= _HEAD:
            self._problem = "ffmpeg gave something else than a frame"
            return None
        if size > MAX_FILE_BYTES:
            limit = MAX_FILE_BYTES // 2**20
            self._problem = f"a frame has {size / 2**20:.0f} MiB, and {limit} is the limit: take a smaller stream"
            return None
        rest = stream.read(size - _HEAD)
        return head + rest if len(rest) == size - _HEAD else None

    def _listen(self) -> None:
        """Keep the last of what ffmpeg says."""
        stream = self._process.stderr
        assert stream is not None
        while line := stream.readline(1000):
            text = " ".join(self._tell(line.decode(errors="replace")).split())
            if text:
                self._said.append(text[:300])


def _options(given: Sequence[str], step_s: float) -> list[str]:
    """Return ffmpeg's options.

    The first frame of each step is selected, and numbered anew so that none is dropped or doubled after that.
    """
    step, former = (f"floor(({t}+0.001)/{step_s:.6f})" for t in ("t", "prev_selected_t"))
    chosen = f"isnan(t)+isnan(prev_selected_t)+not(eq({step},{former}))"
    return [
        *("-nostdin", "-hide_banner", "-loglevel", "error", "-threads", "1"),
        *given,
        *("-map", "0:v:0", "-vf", f"select='{chosen}',setpts=N/(25*TB)", "-r", "25"),
        *("-c:v", "bmp", "-pix_fmt", "bgr24", "-sws_flags", "bicubic+accurate_rnd+full_chroma_int"),
        *("-f", "image2pipe", "pipe:1"),
    ]


def _with_parent(command: list[str]) -> list[str]:
    """Return the command that ends with us even if we are killed; elsewhere than on Linux, at its next frame."""
    import os

    if sys.platform != "linux" or not sys.executable or not Path(sys.executable).exists():
        return command
    return [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid()), *command]
