"""A native kit's goldens where they count: photos go to a device, and its logits must be the kit's, bit for bit.

A device is a program that answers photos on its standard input and output, as a kit's ``classify --photos`` does; an
emulator or a serial line may be between. What is said is in the kit's ``wire.h``.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qdeploy.checks.verify import Check, Verification
from qdeploy.core.errors import InputError
from qdeploy.core.files import read_json
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.progress import Progress
from qdeploy.native.photos import GoldenPhotos, ppm, read_photos

ANSWER_S = 120.0
"""Longest wait for one answer; a photo of the model's size takes 13 s on a line of 9600 baud."""
END_S = 2.0
"""Wait for a device that was told that no more comes; an emulated one never ends by itself."""
LONGEST_LINE = 1 << 20
PROGRAM = ("./classify", "--photos")
"""What runs in the folder of an ``ssh://`` address."""
GREETING, LOGITS, ERROR = "qdeploy-native 1 ", "logits ", "error "


@dataclass(frozen=True)
class Model:
    """What a device says of its model."""

    sha256: str
    """Of the file that it was compiled from."""
    size: int
    """Height and width of its input in pixels."""
    classes: int
    any_size: bool
    """Whether it resizes photos itself."""


@dataclass(frozen=True)
class Answer:
    """A device's answer to a photo."""

    label: int
    """Index of the largest logit, as the device found it."""
    logits: NDArray[np.float32]
    """``[K]``, exactly."""


class DeviceError(InputError):
    """A device gives no answer that can be read."""


def command_of(device: str) -> list[str]:
    """Return the command that reaches a device.

    Args:
        device: A command; or ``ssh://[USER@]HOST[:PORT]/FOLDER``, the folder in which a kit was built, ``/~/FOLDER``
            being in the user's home.

    Raises:
        InputError: If it is neither.
    """
    if not device.startswith("ssh://"):
        try:
            words = shlex.split(device)
        except ValueError as error:
            raise InputError(f"`device` is no command: {error}", found=f"'{device}'") from error
        if not words:
            raise InputError("`device` is empty", fix="give a command, or ssh://HOST/FOLDER")
        return words
    try:
        address = urlsplit(device)
        host, port = address.hostname, address.port
    except ValueError:
        host, port = None, None
    folder = unquote(urlsplit(device).path if host else "")
    if not host or host.startswith("-") or folder.strip("/") == "":
        raise InputError("`device` must be ssh://[USER@]HOST[:PORT]/FOLDER or a command", found=f"'{device}'")
    user = [f"{unquote(address.username)}@{host}"] if address.username else [host]
    place = shlex.quote(folder) if not folder.startswith("/~/") else f"~/{shlex.quote(folder.removeprefix('/~/'))}"
    ports = ["-p", str(port)] if port else []
    return ["ssh", "-T", "-o", "BatchMode=yes", *ports, "--", *user, f"cd {place} && exec {' '.join(PROGRAM)}"]


class Device:
    """A device that is asked; a context manager that ends its command."""

    def __init__(self, words: Sequence[str], answer_s: float = ANSWER_S) -> None:
        """Start the command and ask which model the device has.

        Args:
            words: The command, as of ``command_of``.
            answer_s: Longest wait for an answer in seconds.

        Raises:
            InputError: If the command cannot be started, or nothing that answers photos is at its end.
        """
        self._name, self._answer_s = shlex.join(words), answer_s
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
        try:
            self._process = subprocess.Popen(list(words), start_new_session=True, **pipes)
        except OSError as error:
            self._said.close()
            raise InputError(f"`device`: {words[0]} cannot be started: {error.strerror}") from error
        try:
            self.model = self._greeted()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the command."""
        with suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._kill()
        self._process.wait()
        self._stdout.close()
        self._said.close()

    def answer(self, photo: NDArray[np.uint8]) -> Answer:
        """Classify a photo, uint8 ``[H, W, 3]``, RGB.

        Raises:
            DeviceError: If the device refuses it, or gives no answer.
        """
        line = self._asked(ppm(photo), (LOGITS, ERROR))
        if line.startswith(ERROR):
            raise DeviceError(f"the device says: {line.removeprefix(ERROR)}")
        try:
            label, *bits = line.removeprefix(LOGITS).split()
            logits = np.array([int(b, 16) for b in bits], np.uint32).view(np.float32)
            found = Answer(int(label), logits)
        except (ValueError, OverflowError) as error:
            raise DeviceError("the device gives no logits", found=f"'{line[:100]}'") from error
        if len(logits) != self.model.classes:
            raise DeviceError(f"the device gives {len(logits)} logits, {self.model.classes} expected")
        return found

    def _greeted(self) -> Model:
        line = self._asked(b"?", (GREETING,))
        try:
            sha256, size, classes, sizes = line.removeprefix(GREETING).split()
            return Model(sha256, int(size), int(classes), {"any": True, "exact": False}[sizes])
        except (ValueError, KeyError) as error:
            raise DeviceError("the device does not say what its model is", found=f"'{line[:100]}'") from error

    def _asked(self, question: bytes, kinds: tuple[str, ...]) -> str:
        """Send bytes and return the next line of one of some kinds; what else a board prints is left out."""
        with self._watched() as late:
            try:
                self._stdin.write(question)
                self._stdin.flush()
                while line := self._stdout.readline(LONGEST_LINE):
                    text = line.decode(errors="replace").strip()
                    if text.startswith(kinds):
                        return text
            except OSError:
                pass  # it has ended
        if late():
            raise DeviceError(f"the device gave no answer within {self._answer_s:g} s: {self._name}")
        raise DeviceError(f"the device ended without an answer{self._last_words()}: {self._name}")

    @contextmanager
    def _watched(self) -> Iterator[Callable[[], bool]]:
        """End the command where an answer takes too long; what is yielded tells whether that was so."""
        passed = threading.Event()

        def stop() -> None:
            passed.set()
            self._kill()

        timer = threading.Timer(self._answer_s, stop)
        timer.daemon = True
        timer.start()
        try:
            yield passed.is_set
        finally:
            timer.cancel()

    def _kill(self) -> None:
        """End the command and what it has started."""
        with suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def _last_words(self) -> str:
        """Return what the command said last on its standard error."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._said.seek(0)
        lines = self._said.read(LONGEST_LINE).decode(errors="replace").strip().splitlines()
        return f" ({lines[-1][:200]})" if lines else ""

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    @property
    def _stdout(self) -> Any:
        return self._process.stdout


def verify_device(
    kit: Path, device: str, progress: Progress | None = None, *, answer_s: float = ANSWER_S
) -> Verification:
    """Let a device classify a native kit's golden photos, and compare every bit of its answers with the kit's.

    A device that takes images of the model's size alone gets the photos resized.

    Args:
        kit: The kit's folder.
        device: As for ``command_of``.
        progress: Called with the number of photos done and their total.
        answer_s: Longest wait for an answer in seconds.

    Raises:
        InputError: If the folder is no native kit, or no device answers.
    """
    goldens, card = _kit(kit)
    prepare = Preprocessing.from_dict(card["preprocessing"])
    with Device(command_of(device), answer_s) as found:
        checks = [_model(found.model, goldens, card)]
        if checks[0].ok:
            for i, photo in enumerate(goldens.photos):
                sent = photo if found.model.any_size else prepare.resize(Image.fromarray(photo))
                checks.append(_photo(found, sent, i, goldens.logits[i]))
                if progress:
                    progress(i + 1, len(goldens.photos))
    return Verification(path=str(kit), checks=tuple(checks))


def _kit(folder: Path) -> tuple[GoldenPhotos, dict[str, Any]]:
    if not (folder / "model.goldens").is_file() or not (folder / "wire.h").is_file():
        raise InputError(f"{folder} is no native kit", fix="make one by `qdeploy kit native`, and give its folder")
    card = read_json(folder / "model.card.json")
    if not isinstance(card, dict) or not {"preprocessing", "sha256"} <= set(card):
        raise InputError(f"{folder}/model.card.json is damaged", fix="make the kit again")
    return read_photos(folder / "model.goldens"), card


def _model(found: Model, goldens: GoldenPhotos, card: dict[str, Any]) -> Check:
    same = (found.sha256, found.size, found.classes) == (card["sha256"], goldens.size, goldens.logits.shape[1])
    detail = f"sha256 {found.sha256}, {found.size}x{found.size}, {found.classes} classes"
    return Check(
        name="device: model", ok=same, detail=detail if same else f"{detail}: another than the kit's {card['sha256']}"
    )


def _photo(device: Device, photo: NDArray[np.uint8], number: int, expected: NDArray[np.float32]) -> Check:
    height, width = photo.shape[:2]
    name = f"device: photo {number + 1}, {width}x{height}"
    try:
        answer = device.answer(photo)
    except DeviceError as error:
        return Check(name=name, ok=False, detail=str(error))
    wrong = np.flatnonzero(answer.logits.view(np.uint32) != expected.view(np.uint32))
    if wrong.size:
        k = int(wrong[0])
        detail = f"{wrong.size} of {expected.size} logits differ, the first (class {k}): {answer.logits[k]!s}, "
        return Check(name=name, ok=False, detail=f"{detail}{expected[k]!s} expected")
    if answer.label != int(expected.argmax()):
        return Check(name=name, ok=False, detail=f"label {answer.label}, {int(expected.argmax())} expected")
    return Check(name=name, ok=True, detail=f"label {answer.label}, all bits of {expected.size} logits")
