"""What a server classifies besides what it is sent by HTTP, and where those answers go."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from qdeploy.core.errors import InputError
from qdeploy.serve.sources.inlet import Inlet

ANSWERS = Path("answers.jsonl")
"""Where a watched folder's answers go by default: they are also what is remembered of it."""
SUFFIXES = (".jsonl", ".csv")
USER, PASSWORD = "QDEPLOY_MQTT_USER", "QDEPLOY_MQTT_PASSWORD"
"""Environment variables, for those who want no password in a URL."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, kw_only=True)
class Broker:
    """An MQTT broker and the topic that gets the answers."""

    host: str
    port: int
    tls: bool
    topic: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}/{self.topic}"

    @classmethod
    def from_url(cls, url: str) -> Broker:
        """Read ``mqtt[s]://[user:password@]host[:port][/topic]``.

        Raises:
            InputError: If it is no such URL, or the topic is one to which nobody may publish.
        """
        try:
            parts: SplitResult = urlsplit(url)
            host, port = parts.hostname, parts.port
            (host or "").encode("idna")
        except ValueError as error:  # without its text, which may hold the password
            raise InputError("`mqtt` is not a URL such as mqtt://host:1883/topic") from error
        if parts.scheme not in _PORTS or not host:
            raise InputError("`mqtt` must be a URL such as mqtt://host:1883/topic, or mqtts:// for TLS")
        topic = unquote(parts.path).strip("/") or "qdeploy"
        odd = set(topic) & set("+#") or not topic.isprintable()
        if parts.query or parts.fragment or odd or topic.startswith("$") or len(topic) > 1000:
            raise InputError(
                "the topic of `mqtt` must be printable, without '+', '#', '?', and not begin with '$'", found=topic[:80]
            )
        return cls(
            host=host,
            port=port or _PORTS[parts.scheme],
            tls=parts.scheme == "mqtts",
            topic=topic,
            user=unquote(parts.username) if parts.username else os.environ.get(USER),
            password=unquote(parts.password) if parts.password else os.environ.get(PASSWORD),
        )


@dataclass(frozen=True, kw_only=True)
class SourcesConfig:
    """Folders and cameras, and what becomes of their answers."""

    watch: tuple[Path, ...] = ()
    """Folders whose images are classified, each once."""
    watch_new_only: bool = False
    """Whether images that are there at the start are left alone."""
    camera: tuple[str, ...] = field(default=(), repr=False)
    """Devices, URLs and video files, each with ``NAME=`` before it where it shall have a name."""
    every_s: float = 1.0
    """Seconds from one frame of a camera that is classified to the next."""
    answers: Path | None = None
    """File to which answers are added, a ``.jsonl`` or a ``.csv``; by default ``ANSWERS``, or none where there is no
    watched folder and the answers are published."""
    mqtt: str | None = field(default=None, repr=False)
    """URL of a broker and its topic, for answers as messages."""
    model: str | None = None
    """Name of the model that answers; by default the first."""
    top: int = 3
    """Labels of an answer."""

    def __post_init__(self) -> None:
        for name, low, high in (("every_s", 0.02, 3600), ("top", 1, 100_000)):
            if not low <= getattr(self, name) <= high:
                option = name.removesuffix("_s")
                raise InputError(f"`{option}` must be between {low} and {high}", found=getattr(self, name))
        if not self.any:
            for option, given in (("answers", self.answers), ("mqtt", self.mqtt)):
                if given is not None:
                    raise InputError(f"`{option}` is for the answers of `watch` and `camera`", fix="give one of these")
        if self.answers is not None and self.answers.suffix not in SUFFIXES:
            raise InputError(f"`answers` must end in {' or '.join(SUFFIXES)}", found=self.answers.name)
        for folder in self.watch:
            if not folder.is_dir():
                raise InputError(f"cannot watch {folder}: {'not a folder' if folder.exists() else 'no such folder'}")
        absolute = [os.path.join(os.path.abspath(folder), "") for folder in self.watch]
        for i, path in enumerate(absolute):
            if any(path.startswith(other) for j, other in enumerate(absolute) if i != j):
                raise InputError(f"{path} is in another folder of `watch`, which is watched at all levels")
        names = [inlet.name for inlet in self.inlets]
        if len(set(names)) < len(names):
            raise InputError("two cameras of `camera` have one name", found=", ".join(names), fix="write NAME=CAMERA")
        _ = self.broker

    @property
    def any(self) -> bool:
        """Whether there is a folder or a camera."""
        return bool(self.watch or self.camera)

    @property
    def inlets(self) -> tuple[Inlet, ...]:
        """The cameras."""
        return tuple(Inlet.from_word(word) for word in self.camera)

    @property
    def broker(self) -> Broker | None:
        """The broker, or None."""
        return None if self.mqtt is None else Broker.from_url(self.mqtt)

    @property
    def answer_file(self) -> Path | None:
        """The file that gets the answers, or None."""
        if self.answers is None and (self.watch or (self.camera and not self.mqtt)):
            return ANSWERS
        return self.answers
