"""The configuration of a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from qdeploy.core.drift import LEAST_ANSWERS, WINDOW
from qdeploy.core.errors import InputError
from qdeploy.core.image_formats import chosen_formats
from qdeploy.core.machine import usable_cores
from qdeploy.core.whole import require_place
from qdeploy.serve.collect_config import CollectConfig
from qdeploy.serve.sources.config import SourcesConfig

MOST_CONNECTIONS = 20_000
MOST_WINDOW = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where a server listens, how much work it takes, and how long it waits."""

    host: str = "127.0.0.1"
    """Address to listen on; only this machine reaches the default."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    token: str | None = None
    """Secret that clients send as ``Authorization: Bearer``; needed where other machines reach the address."""
    engine: str | None = None
    """Inference engine; by default what ``qdeploy tune`` chose on this machine, else ``ort``."""
    threads: int | None = None
    """Threads of one inference; by default as tuned, else 1 for small models and the process's share of the cores for
    others."""
    workers: int = 1
    """Processes that serve, on one port."""
    queue: int = 256
    """Requests that may wait for a free core; one more is refused with status 503."""
    deadline_s: float = 10.0
    """Longest that a request waits for its answer; then it gets status 504."""
    max_batch: int | None = None
    """Most waiting requests that one inference answers; by default 4 for models that take less than 5 ms here, and 1
    for others, of which a batch takes as long as its images one by one."""
    max_images: int = 64
    """Most images of one request."""
    max_body_bytes: int = 32 * 2**20
    """Largest body of a request, before and after it is decompressed."""
    header_timeout_s: float = 10.0
    """Longest that a client may take to send a request's headers."""
    body_timeout_s: float = 20.0
    """Longest that a client may take to send a request's body."""
    idle_timeout_s: float = 30.0
    """How long a connection may be idle between requests."""
    drain_delay_s: float = 0.0
    """How long a server that is told to stop still takes requests, so that a load balancer notices first."""
    drain_s: float = 30.0
    """Longest that a server that stops waits for its last answers."""
    poll_s: float = 1.0
    """How often the model files are looked at for changes; 0 never."""
    formats: tuple[str, ...] | None = None
    """Which image files are taken, such as ``("jpeg", "png")``; by default all that can be read."""
    abstain: bool = True
    """Whether images below a file's threshold, if it has one, are ``unknown``."""
    drift_window: int = WINDOW
    """Answers that are compared together with those to a model's validation images; 0 compares none."""
    trusted_keys: tuple[Path, ...] | None = None
    """Public keys, one of which must have signed a model file; by default those of ``QDEPLOY_TRUSTED_KEYS``."""
    selftest: bool = True
    """Whether a model's goldens are checked before it serves."""
    log_requests: bool = False
    """Whether every request is logged, or failures only."""
    report: Path | None = None
    """File that gets the report when the server stops."""
    collect: CollectConfig | None = None
    """Which images are kept to be labelled; by default none."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    """Folders and cameras; of several processes the first has them."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535),
            ("workers", 1, 256),
            ("queue", 1, 100_000),
            ("max_images", 1, 1024),
            ("deadline_s", 0.01, 3600),
            ("header_timeout_s", 0.1, 3600),
            ("body_timeout_s", 0.1, 3600),
            ("idle_timeout_s", 0.1, 3600),
            ("drain_delay_s", 0, 3600),
            ("drain_s", 0, 3600),
            ("poll_s", 0, 3600),
            ("max_body_bytes", 1024, 2**31),
        ):
            if not low <= getattr(self, name) <= high:
                option = name.removesuffix("_s")
                raise InputError(f"`{option}` must be between {low} and {high}", found=getattr(self, name))
        if self.drift_window and not LEAST_ANSWERS <= self.drift_window <= MOST_WINDOW:
            raise InputError(
                f"`drift_window` must be 0 or between {LEAST_ANSWERS} and {MOST_WINDOW}", found=self.drift_window
            )
        if self.formats is not None:
            chosen_formats(self.formats)
        for name in ("threads", "max_batch"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1024:
                raise InputError(f"`{name}` must be between 1 and 1024", found=value)
        cores = usable_cores()
        if self.workers * (self.threads or 1) > cores:
            raise InputError(
                f"`workers` times `threads` must not exceed the cores that this process may use, {cores}",
                found=self.workers * (self.threads or 1),
                fix="more only make requests wait for each other",
            )
        if self.token is not None and not _is_secret(self.token):
            raise InputError("`token` must have at least 16 printable ASCII characters and no space")
        if not self.local and self.token is None:
            raise InputError(
                f"other machines reach {self.host}, and everybody there could use the server",
                fix="give a `token`, and put a proxy with TLS in front",
            )
        if self.report is not None:
            require_place(self.report)

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _is_secret(token: str) -> bool:
    return len(token) >= 16 and token.isascii() and token.isprintable() and " " not in token
