"""Cameras through the real ffmpeg: the newest frame, lost connections, silence, and what no log may hold."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from qdeploy.core.errors import InputError
from qdeploy.serve import ServeConfig
from qdeploy.serve.logs import Log
from qdeploy.serve.service import Service
from qdeploy.serve.sources.camera import Camera
from qdeploy.serve.sources.config import SourcesConfig
from qdeploy.serve.sources.desk import Desk
from qdeploy.serve.sources.ffmpeg import Ffmpeg
from qdeploy.serve.sources.inlet import Inlet
from qdeploy.serve.sources.run import Sources
from tests.serve.rtsp import RtspCamera
from tests.serve.serving import EXAMPLES, Serving, refused, until

FFMPEG = shutil.which("ffmpeg")
pytestmark = pytest.mark.skipif(FFMPEG is None, reason="ffmpeg is not installed")
PASSWORD = "s3cr3t-w0rd"


def jpeg(example: str) -> bytes:
    stream = io.BytesIO()
    with Image.open(EXAMPLES / f"{example}.png") as image:
        image.convert("RGB").save(stream, "JPEG", quality=95)
    return stream.getvalue()


class StreamServer(ThreadingHTTPServer):
    """A camera as many are: an endless answer of JPEG files."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0, example: str = "bag", most: int | None = None, password: str = "") -> None:
        super().__init__(("127.0.0.1", port), Stream)
        self.frame = jpeg(example)
        self.most = most
        """Frames after which it is silent; None for ever."""
        self.expected = base64.b64encode(f"cam:{password}".encode()).decode() if password else ""
        self.gone = Flag()
        self.asked = 0
        self.whole: tuple[str, bytes] | None = None
        """Content type and body of an answer that ends."""
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none."""

    def end(self) -> None:
        """Break every connection and take no more."""
        self.gone.set()
        self.shutdown()
        self.server_close()


class Stream(BaseHTTPRequestHandler):
    server: StreamServer

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.expected and self.headers.get("Authorization") != f"Basic {self.server.expected}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_response(200)
        if self.server.whole is not None:
            self.send_header("Content-Type", self.server.whole[0])
            self.end_headers()
            self.wfile.write(self.server.whole[1])
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        frame, sent = self.server.frame, 0
        while not self.server.gone.wait(0.04):
            if self.server.most is None or sent < self.server.most:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n".encode()
                self.wfile.write(head + frame + b"\r\n")
                sent += 1

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Events:
    """What was logged."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def __call__(self, event: str, level: str = "info", **details: Any) -> None:
        self.all.append({"event": event, **details})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.all if entry["event"] == event]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service((), ServeConfig(selftest=False), Log(quiet=True))
    made.start()
    yield made
    made.stop()


@contextmanager
def running(service: Service, place: Path, *cameras: str, every_s: float = 0.1) -> Iterator[Events]:
    """Classify cameras' frames into ``answers.jsonl``."""
    events = Events()
    sources = Sources(SourcesConfig(camera=cameras, every_s=every_s, answers=place / "answers.jsonl"), events)
    sources.start(service)
    try:
        yield events
    finally:
        sources.stop()


def answers(place: Path) -> list[dict[str, Any]]:
    with suppress(FileNotFoundError):
        text = (place / "answers.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return []


def film(path: Path, example: str = "trouser", seconds: int = 2) -> Path:
    """A film without loss, five frames a second."""
    given = ["-loop", "1", "-r", "5", "-i", str(EXAMPLES / f"{example}.png"), "-t", str(seconds)]
    subprocess.run([str(FFMPEG), "-v", "error", *given, "-c:v", "png", "-pix_fmt", "rgb24", path], check=True)
    return path


def descendants_named(name: str, process: int) -> list[int]:
    """The processes of a name that any thread of a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "stat").read_text().rsplit(")", 1)
            if words[0].endswith(f"({name}") and int(words[1].split()[1]) == process:
                found.append(int(folder.name))
    return found


def alive(process: int) -> bool:
    try:
        return (Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]) != "Z"
    except OSError:
        return False


def test_a_frame_is_classified_as_the_same_image_is(service: Service, tmp_path: Path) -> None:
    """Nothing between the camera and our own preprocessing; a film that ends begins again."""
    film(tmp_path / "film.mkv", seconds=1)
    with running(service, tmp_path, f"hall={tmp_path / 'film.mkv'}") as events:
        until(lambda: len(answers(tmp_path)) >= 8)
    prediction, _ = service.classify((EXAMPLES / "trouser.png").read_bytes())
    assert {a["image"] for a in answers(tmp_path)} == {"hall"}
    assert {a["source"] for a in answers(tmp_path)} == {"camera"}
    assert {a["label"] for a in answers(tmp_path)} == {"Trouser"}
    assert {a["probability"] for a in answers(tmp_path)} == {round(prediction.probability, 6)}
    assert [entry["event"] for entry in events.all] == ["camera-connected"]


@pytest.mark.slow
def test_a_camera_that_goes_and_comes_again(service: Service, tmp_path: Path) -> None:
    server = StreamServer(password=PASSWORD)
    port = server.port
    with running(service, tmp_path, f"door=http://cam:{PASSWORD}@127.0.0.1:{port}/mjpeg?token=abcdefg") as events:
        until(lambda: len(answers(tmp_path)) >= 3)
        server.end()
        until(lambda: len(events.of("camera-lost")) >= 2)
        before = len(answers(tmp_path))
        server = StreamServer(port, "sandal", password=PASSWORD)
        until(lambda: len(answers(tmp_path)) >= before + 3)
    server.end()
    assert len(events.of("camera-connected")) == 2
    lost = events.of("camera-lost")
    assert [entry["failures"] for entry in lost] == list(range(1, len(lost) + 1))
    assert "Connection refused" in lost[0]["why"]
    assert lost[0]["place"] == f"http://127.0.0.1:{port}"
    assert {a["label"] for a in answers(tmp_path)} == {"Bag", "Sandal"}
    told = json.dumps(events.all) + (tmp_path / "answers.jsonl").read_text()
    assert not any(secret in told for secret in (PASSWORD, "abcdefg", "mjpeg"))


@pytest.mark.slow
def test_an_rtsp_camera_that_goes_and_comes_again(service: Service, tmp_path: Path) -> None:
    """By TCP, with a password."""
    camera = RtspCamera(str(FFMPEG), tmp_path, PASSWORD)
    with running(service, tmp_path, f"rtsp://cam:{PASSWORD}@127.0.0.1:{camera.port}/live", every_s=0.2) as events:
        until(lambda: len(answers(tmp_path)) >= 3)
        camera.end()
        until(lambda: events.of("camera-lost"))
        before = len(answers(tmp_path))
        camera = RtspCamera(str(FFMPEG), tmp_path, PASSWORD, camera.port)
        until(lambda: len(answers(tmp_path)) >= before + 3)
    until(lambda: "TEARDOWN" in camera.words, 5)
    camera.end()
    assert len(events.of("camera-connected")) == 2
    assert PASSWORD not in json.dumps(events.all) + (tmp_path / "answers.jsonl").read_text()


@pytest.mark.slow
def test_a_wrong_password_is_told_without_it(service: Service, tmp_path: Path) -> None:
    server = StreamServer(password="another")
    with running(service, tmp_path, f"http://cam:{PASSWORD}@127.0.0.1:{server.port}/x") as events:
        (first, *_) = until(lambda: events.of("camera-lost"))
    server.end()
    assert "401" in first["why"]
    assert PASSWORD not in json.dumps(events.all)


@pytest.mark.slow
def test_an_address_that_gives_one_picture_is_asked_again(service: Service, tmp_path: Path) -> None:
    server = StreamServer()
    server.whole = "image/jpeg", jpeg("bag")
    with running(service, tmp_path, f"http://127.0.0.1:{server.port}/now.jpg", every_s=0.3) as events:
        until(lambda: len(answers(tmp_path)) >= 3)
    server.end()
    assert {a["label"] for a in answers(tmp_path)} == {"Bag"}
    assert [entry["event"] for entry in events.all] == ["camera-connected"]


@pytest.mark.slow
def test_a_silent_camera_is_connected_anew(service: Service) -> None:
    server = StreamServer(most=5)
    events = Events()
    desk = Desk(service, SourcesConfig(), None, None, events)
    camera = Camera(Inlet.from_word(f"http://127.0.0.1:{server.port}/"), 0.05, desk, stall_s=0.5)
    camera.start()
    until(lambda: len(events.of("camera-connected")) == 2)
    desk.stop.set()
    camera.join(5)
    server.end()
    assert events.of("camera-lost")[0]["why"] == "no frame for 0.5 s"


def test_a_slow_reader_gets_the_newest_frame() -> None:
    """Frame N is as bright as 4 N; while nobody takes one, they are replaced."""
    graph = "nullsrc=s=16x16:r=20,format=gray,geq=lum='16+4*N'"
    run = Ffmpeg(str(FFMPEG), ("-re", "-f", "lavfi", "-i", graph), 0.05, 1, str)
    try:
        assert run.take(10) is not None
        time.sleep(1)
        frame, came = run.take(1), run.frames
        assert frame is not None
        with Image.open(io.BytesIO(frame)) as image:
            assert image.size == (16, 16)
            shade = image.convert("L").getpixel((8, 8))
        assert came >= 10
        assert isinstance(shade, int)
        assert abs(shade - (16 + 4 * (came - 1))) <= 8
    finally:
        run.close()


@pytest.mark.slow
def test_of_frames_asked_for_rarely_some_only_show_that_the_camera_is_there() -> None:
    run = Ffmpeg(str(FFMPEG), ("-re", "-f", "lavfi", "-i", "testsrc=size=32x32:rate=20:duration=1.5"), 0.05, 3, str)
    taken = 0
    while not run.ended:
        taken += run.take(0.01) is not None
    assert run.close() is None
    assert run.frames == 30
    assert 1 <= taken <= 10


@pytest.mark.slow
def test_the_rate_is_kept_where_it_is_no_part_of_the_camera_s() -> None:
    """Ten a second, of 25."""
    run = Ffmpeg(str(FFMPEG), ("-f", "lavfi", "-i", "testsrc=size=32x32:rate=25:duration=4"), 0.1, 1, str)
    while not run.ended:
        run.take(0.01)
    assert run.close() is None
    assert run.frames == 40


@pytest.mark.slow
def test_a_frame_that_is_too_large_is_told(service: Service, tmp_path: Path) -> None:
    with running(service, tmp_path, "lavfi:color=size=4096x4096") as events:
        (first, *_) = until(lambda: events.of("camera-lost"))
    assert first["why"] == "a frame has 48 MiB, and 32 is the limit: take a smaller stream"


def test_a_stream_leads_to_no_file_of_this_machine(service: Service, tmp_path: Path) -> None:
    clip = tmp_path / "secret.ts"
    given = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=2", "-c:v", "mpeg2video"]
    subprocess.run([str(FFMPEG), "-v", "error", *given, clip], check=True)
    server = StreamServer()
    lines = ("#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", f"file://{clip}", "#EXT-X-ENDLIST")
    server.whole = "application/vnd.apple.mpegurl", ("\n".join(lines) + "\n").encode()
    with running(service, tmp_path, f"http://127.0.0.1:{server.port}/list.m3u8") as events:
        until(lambda: events.of("camera-lost"))
    server.end()
    assert answers(tmp_path) == []
    assert server.asked >= 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_ffmpeg_outlives_the_server(tmp_path: Path, end: signal.Signals) -> None:
    """Not even one that waits for a camera which says nothing."""
    server = StreamServer(most=0)
    with Serving(tmp_path, "--camera", f"http://127.0.0.1:{server.port}/") as serving:
        until(lambda: server.asked)
        (ffmpeg,) = until(lambda: descendants_named("ffmpeg", serving.process.pid))
        serving.kill() if end == signal.SIGKILL else serving.stop()
        until(lambda: not alive(ffmpeg), 5)
    server.end()


def test_a_camera_counts_in_the_report(tmp_path: Path) -> None:
    with Serving(tmp_path, "--camera", "lavfi:testsrc=size=640x360", "--every", "0.2") as serving:
        until(lambda: len(serving.answers()) >= 3)
        assert serving.report()["since_start"]["images"] >= 3
        os.killpg(serving.process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
        assert serving.process.wait(30) == 0
        assert serving.events("camera-lost") == []


def test_without_ffmpeg_one_line_says_what_to_install(tmp_path: Path) -> None:
    with refused(tmp_path, "--camera", "rtsp://127.0.0.1/", PATH=str(tmp_path)) as line:
        assert line == "qdeploy: a camera needs ffmpeg, which is not installed; run: apt install ffmpeg\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nothing.mp4", "there is no camera and no video file nothing.mp4"),
        ("ftp://user:pw-word@host/x", "takes URLs of rtsp, rtsps, http, https, with a host, found ftp://"),
        ("rtsp://user:pw-word@/x", "with a host"),
        ("rtsp://user:pw-word@host:port/x", "is not a URL such as rtsp://host:554/stream"),
        ("concat:a|b", "there is no camera and no video file"),
        ("http://a\nb/", "cannot be printed"),
        ("-i", "there is no camera and no video file"),
    ],
)
def test_what_is_no_camera_is_one_line(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        SourcesConfig(camera=(word,))
    assert "pw-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "name", "place"),
    [
        ("/dev/video0", "video0", "/dev/video0"),
        ("door=/dev/video0", "door", "/dev/video0"),
        ("rtsp://user:pw-word@cam:8554/a?b=c", "cam", "rtsp://cam:8554"),
        ("hall=rtsps://[::1]/user=admin_password=pw-word", "hall", "rtsps://[::1]"),
    ],
)
def test_a_camera_s_name_and_place_hold_no_secret(word: str, name: str, place: str) -> None:
    inlet = Inlet.from_word(word)
    assert (inlet.name, inlet.place) == (name, place)
    assert "pw-word" not in repr(inlet) + repr(SourcesConfig(camera=(word,)))
    assert "pw-word" not in inlet.without_secrets(f"{inlet.options[-1]}: no route")
    assert inlet.without_secrets("rtsp://a:b@c/: refused") == "rtsp://c/: refused"
