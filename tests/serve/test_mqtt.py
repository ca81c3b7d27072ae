"""Answers as MQTT messages through a real mosquitto that is killed, restarted, encrypted and picky."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from qdeploy.core.errors import InputError
from qdeploy.serve.sources.config import Broker, SourcesConfig
from qdeploy.serve.sources.mqtt import IN_FLIGHT, Publisher
from tests.serve.serving import EXAMPLES, Serving, refused, until

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
PASSWORD = "s3cr3t: w0rd"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Mosquitto:
    """A broker that remembers its subscribers, so that it may be killed."""

    def __init__(self, place: Path, *lines: str) -> None:
        self.port = free_port()
        self._file = place / "mosquitto.conf"
        kept = ("persistence true", f"persistence_location {place}/", "autosave_on_changes true", "autosave_interval 1")
        access = lines or ("allow_anonymous true",)
        self._file.write_text("\n".join((f"listener {self.port} 127.0.0.1", *access, *kept, "user root")) + "\n")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([str(MOSQUITTO), "-c", self._file], stderr=subprocess.DEVNULL)
        until(self._listens)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def _listens(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def broker(place: Path, *lines: str) -> Iterator[Mosquitto]:
    made = Mosquitto(place, *lines)
    try:
        yield made
    finally:
        made.kill()


class Subscriber:
    """Keeps all messages below a topic, in their order."""

    def __init__(self, port: int, topic: str = "shop/#") -> None:
        self.messages: list[tuple[str, str]] = []
        self._ready = False
        self._client = Client(CallbackAPIVersion.VERSION2, client_id="subscriber", clean_session=False)
        self._client.on_message = self._keep
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: setattr(self, "_ready", True)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        until(lambda: self._ready)

    def _keep(self, client: Client, data: Any, message: MQTTMessage) -> None:
        self.messages.append((message.topic, message.payload.decode()))

    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(text) for topic, text in self.messages if not topic.endswith("/status")]

    def states(self) -> list[str]:
        return [text for topic, text in self.messages if topic.endswith("/status")]

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Events:
    """What was logged."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def __call__(self, event: str, level: str = "info", **details: Any) -> None:
        self.all.append({"event": event, **details})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.all if entry["event"] == event]


def test_answers_and_state_reach_subscribers(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with broker(tmp_path) as mosquitto, Subscriber(mosquitto.port) as subscriber:
        url = f"mqtt://127.0.0.1:{mosquitto.port}/shop/door"
        with Serving(tmp_path, "--watch", "in", "--mqtt", url) as serving:
            shutil.copy(EXAMPLES / "bag.png", tmp_path / "in" / "one.png")
            until(subscriber.answers)
            assert serving.events("mqtt-connected")[0]["broker"] == url
        until(lambda: subscriber.states() == ["online", "offline"])
        (answer,) = subscriber.answers()
        assert subscriber.messages[1][0] == "shop/door"
        assert (answer["label"], answer["image"]) == ("Bag", str(tmp_path / "in" / "one.png"))
        assert set(answer) == {
            *("time", "source", "image", "model", "version", "label", "unknown", "score", "probability"),
            *("predictions", "latency_ms"),
        }
        serving = Serving(tmp_path, "--camera", "lavfi:testsrc=size=64x64", "--mqtt", url)
        until(lambda: subscriber.answers()[-1]["image"] == "lavfi")
        serving.kill()
        until(lambda: subscriber.states()[2:] == ["online", "offline"])


@pytest.mark.slow
def test_nothing_is_lost_while_the_broker_is_killed_and_restarted(tmp_path: Path) -> None:
    events = Events()
    with broker(tmp_path) as mosquitto, Subscriber(mosquitto.port) as subscriber:
        publisher = Publisher(Broker.from_url(f"mqtt://127.0.0.1:{mosquitto.port}/shop"), events)
        publisher.start()
        for i in range(60):
            publisher.publish({"image": i})
        until(lambda: len(subscriber.answers()) == 60)
        time.sleep(1.2)  # the broker saves its subscribers every second
        mosquitto.kill()
        until(lambda: events.of("mqtt-disconnected"))
        for i in range(60, 120):
            publisher.publish({"image": i})
        mosquitto.start()
        until(lambda: {a["image"] for a in subscriber.answers()} >= set(range(120)))
        publisher.close()
        until(lambda: subscriber.states()[-1] == "offline")
    assert len(events.of("mqtt-connected")) == 2
    assert events.of("mqtt-unsent") == []


@pytest.mark.slow
def test_where_too_many_wait_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdeploy.serve.sources.mqtt.WAITING", 5)
    events = Events()
    with broker(tmp_path) as mosquitto:
        mosquitto.kill()
        publisher = Publisher(Broker.from_url(f"mqtt://127.0.0.1:{mosquitto.port}/shop"), events)
        publisher.start()
        for i in range(100):
            publisher.publish({"image": i})
            time.sleep(0.002)
        mosquitto.start()
        with Subscriber(mosquitto.port) as subscriber:
            until(lambda: {a["image"] for a in subscriber.answers()} >= set(range(95, 100)))
            publisher.close()
            images = [a["image"] for a in subscriber.answers()]
    assert images == sorted(set(images))
    assert len(images) <= IN_FLIGHT + 5
    assert events.of("mqtt-dropped")[0]["messages"] == 1
    assert events.of("mqtt-connected")[-1]["dropped"] == 100 - IN_FLIGHT - 5


@pytest.mark.slow
def test_an_unreachable_broker_holds_up_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(EXAMPLES / "bag.png", tmp_path / "in" / "one.png")
    serving = Serving(tmp_path, "--watch", "in", "--mqtt", f"mqtt://127.0.0.1:{free_port()}")
    until(serving.answers)
    until(lambda: serving.events("mqtt-unreachable"))
    begin = time.monotonic()
    assert serving.stop() == 0
    assert time.monotonic() - begin < 8
    assert serving.events("mqtt-unsent")[0]["messages"] == 1


@pytest.mark.slow
def test_a_broker_that_says_nothing_holds_up_no_end(tmp_path: Path) -> None:
    events = Events()
    with broker(tmp_path) as mosquitto:
        publisher = Publisher(Broker.from_url(f"mqtt://127.0.0.1:{mosquitto.port}/shop"), events)
        publisher.start()
        until(lambda: events.of("mqtt-connected"))
        mosquitto.process.send_signal(signal.SIGSTOP)
        publisher.publish({"image": 1})
        begin = time.monotonic()
        publisher.close(0.5)
        assert time.monotonic() - begin < 5
        mosquitto.process.send_signal(signal.SIGCONT)
        assert events.of("mqtt-unsent")[0]["messages"] == 1


@pytest.mark.slow
def test_a_connection_that_is_never_made_holds_up_no_end() -> None:
    """The listener's queue is full, and the system lets further clients wait."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        publisher = Publisher(Broker.from_url(f"mqtt://127.0.0.1:{listener.getsockname()[1]}/shop"), Events())
        publisher.start()
        time.sleep(0.3)
        begin = time.monotonic()
        publisher.close(0.5)
        assert time.monotonic() - begin < 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*SSLSocket")  # paho forgets the socket of a failed handshake
def test_tls_and_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the URL, or from the environment; a wrong one is told and not written anywhere."""
    key, certificate, passwords = (tmp_path / name for name in ("key.pem", "certificate.pem", "passwords"))
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*request, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "shop", PASSWORD], check=True, capture_output=True)
    lines = ("allow_anonymous false", f"password_file {passwords}", f"certfile {certificate}", f"keyfile {key}")
    with broker(tmp_path, *lines) as mosquitto:
        where = f"localhost:{mosquitto.port}/shop"
        unsigned = first_event(f"mqtts://shop:s3cr3t%3A%20w0rd@{where}", "mqtt-unreachable")
        assert "certificate verify failed" in unsigned["why"]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert first_event(f"mqtts://shop:wrong-w0rd@{where}", "mqtt-refused")["why"] == "Not authorized"
        first_event(f"mqtts://shop:s3cr3t%3A%20w0rd@{where}", "mqtt-connected")
        monkeypatch.setenv("QDEPLOY_MQTT_USER", "shop")
        monkeypatch.setenv("QDEPLOY_MQTT_PASSWORD", PASSWORD)
        first_event(f"mqtts://{where}", "mqtt-connected")


def first_event(url: str, event: str) -> dict[str, Any]:
    """Connect until an event is logged; the log holds no password."""
    events = Events()
    publisher = Publisher(Broker.from_url(url), events)
    publisher.start()
    (found, *_) = until(lambda: events.of(event))
    publisher.close()
    assert "w0rd" not in json.dumps(events.all) + repr(Broker.from_url(url))
    return found


def test_without_paho_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "none" / "paho").mkdir(parents=True)
    missing = "raise ModuleNotFoundError(\"No module named 'paho'\", name='paho')\n"
    (tmp_path / "none" / "paho" / "__init__.py").write_text(missing)
    root = str(Path(__file__).parents[2])
    with refused(
        tmp_path, "--watch", ".", "--mqtt", "mqtt://127.0.0.1", PYTHONPATH=f"{tmp_path / 'none'}:{root}"
    ) as line:
        assert line == "qdeploy: MQTT needs paho-mqtt, which is not installed; run: pip install 'qdeploy[mqtt]'\n"


@pytest.mark.parametrize(
    "url",
    [
        *("http://pw-word@host", "mqtt://", "mqtt:host", "mqtt://u:pw-word@host:port", "mqtt://host/a/+/b"),
        *("mqtt://host/a%23", "mqtt://u:pw-word@host/$SYS/x", "mqtt://host/a?b", "mqtt://[::1", "mqtt://..a"),
        *("mqtt://host/a%0Ab", "mqtt://host/a%00", "mqtt://host/\udcff"),
    ],
)
def test_what_is_no_broker_is_one_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`mqtt`") as caught:
        SourcesConfig(mqtt=url, watch=(tmp_path,))
    assert "pw-word" not in str(caught.value)


def test_a_broker_s_address() -> None:
    broker = Broker.from_url("mqtts://a%40b:c@host")
    assert (broker.host, broker.port, broker.tls, broker.topic) == ("host", 8883, True, "qdeploy")
    assert (broker.user, broker.password) == ("a@b", "c")
    assert str(broker) == "mqtts://host:8883/qdeploy"
