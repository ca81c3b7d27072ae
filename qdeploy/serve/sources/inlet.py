"""Where a camera's frames come from, as ffmpeg is told, and as a log may tell it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from qdeploy.core.errors import InputError

_NAMED = re.compile(r"([A-Za-z0-9._-]{1,64})=(.+)", re.S)
_LAVFI = "lavfi:"
_LIVE = ("-analyzeduration", "2000000")  # microseconds; with ffmpeg's "nobuffer" what it has analysed would be lost
_RTSP = ("-rtsp_transport", "tcp", "-protocol_whitelist", "rtsp,rtsps,rtp,tcp,tls")
_HTTP = ("-protocol_whitelist", "http,https,httpproxy,tcp,tls,crypto")
_URLS = {
    "rtsp": (*_LIVE, *_RTSP),
    "rtsps": (*_LIVE, *_RTSP),
    "http": (*_LIVE, *_HTTP),
    "https": (*_LIVE, *_HTTP),
}
"""Options for each kind of URL: a stream that names further ones, or sends elsewhere, reaches no file and no socket of
this machine by another protocol."""


@dataclass(frozen=True, kw_only=True)
class Inlet:
    """One camera."""

    name: str
    """What answers and the log call it."""
    place: str
    """Where it is: of a URL the host and the port, and nothing in which a password may stand."""
    options: tuple[str, ...] = field(repr=False)
    """ffmpeg's options for its input, up to and with the input itself."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Texts that no log may hold, the longest first."""

    @classmethod
    def from_word(cls, word: str) -> Inlet:
        """Read ``[NAME=]CAMERA``: a device, a URL, a video file or ``lavfi:GRAPH``.

        Raises:
            InputError: If it is none of them.
        """
        named = None if os.path.exists(word) else _NAMED.fullmatch(word)
        name, what = (named[1], named[2]) if named else ("", word)
        if not what.isprintable():
            raise InputError("`camera` has a character that cannot be printed")
        if what.startswith(_LAVFI):
            return cls(name=name or "lavfi", place=what, options=("-re", "-f", "lavfi", "-i", what[len(_LAVFI) :]))
        if "://" in what:
            return _from_url(name, what)
        path = os.path.abspath(what)
        if path.startswith("/dev/"):
            return cls(name=name or os.path.basename(path), place=path, options=("-f", "v4l2", "-i", path))
        if not os.path.isfile(path):
            raise InputError(
                f"there is no camera and no video file {what[:200]}",
                fix="give a device such as /dev/video0, an rtsp:// or http:// URL, or a file",
            )
        options = ("-re", "-protocol_whitelist", "file", "-i", f"file:{path}")
        return cls(name=name or os.path.basename(path), place=path, options=options)

    def without_secrets(self, text: str) -> str:
        """Return a text of ffmpeg's as it may be told."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return re.sub(r"//[^/@\s]*@", "//", text)


def _from_url(name: str, url: str) -> Inlet:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # without its text, which may hold the password
        raise InputError("`camera` is not a URL such as rtsp://host:554/stream") from error
    if parts.scheme not in _URLS or not host:
        raise InputError(
            f"`camera` takes URLs of {', '.join(_URLS)}, with a host", found=f"{parts.scheme[:20]}://", fix="give one"
        )
    where = f"[{host}]" if ":" in host else host
    credentials = parts.netloc.rpartition("@")[0]
    told = (url, credentials, parts.password, parts.path.lstrip("/"), parts.query)  # a path may hold passwords, too
    secrets = {form for text in told if text for form in (text, unquote(text))}
    return Inlet(
        name=name or where,
        place=f"{parts.scheme}://{where}{f':{port}' if port else ''}",
        options=(*_URLS[parts.scheme], "-i", url),
        secrets=tuple(sorted(secrets, key=len, reverse=True)),
    )
