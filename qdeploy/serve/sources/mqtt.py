"""Answers as MQTT messages: sent again until the broker has them, the oldest dropped where too many wait."""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections import deque
from threading import Condition, Semaphore, Thread
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from qdeploy.core.errors import InputError, one_line
from qdeploy.serve.models import Event
from qdeploy.serve.sources.answers import Record
from qdeploy.serve.sources.config import Broker

WAITING = 1000
"""Answers that wait for the broker; one more drops the oldest."""
IN_FLIGHT = 20
"""Messages that are sent before the first is acknowledged."""
LONGEST_WAIT_S = 30
KEEP_ALIVE_S = 30
_TELL_S = 10.0
_ONLINE, _OFFLINE = "online", "offline"


class Publisher:
    """Sends answers to ``TOPIC`` and its own state, ``online`` or ``offline``, to ``TOPIC/status``.

    Messages have quality of service 1; the state is retained, and the broker itself says ``offline`` for a server that
    is gone. Safe to use from several threads: nobody waits for the broker.
    """

    def __init__(self, broker: Broker, event: Event) -> None:
        """Prepare the connection.

        Raises:
            InputError: If the broker's name and password cannot be used.
        """
        self._broker = broker
        self._event = event
        self._waiting: deque[str] = deque()
        self._changed = Condition()
        self._closing = False
        self._sent = 0
        self._arrived = 0
        self._dropped = 0
        self._told = -_TELL_S
        self._slots = Semaphore(IN_FLIGHT)
        self._own: set[int] = set()
        """Numbers of the messages that are no answers; only the client's thread uses it."""
        self._client = self._made()
        self._thread = Thread(target=self._send, name="mqtt", daemon=True)

    def start(self) -> None:
        """Connect, and go on trying."""
        self._client.connect_async(self._broker.host, self._broker.port, KEEP_ALIVE_S)
        self._client.loop_start()
        self._thread.start()

    def publish(self, answer: Record) -> None:
        """Queue an answer."""
        with self._changed:
            self._waiting.append(json.dumps(answer))
            if len(self._waiting) > WAITING:
                self._waiting.popleft()
                self._drop()
            self._changed.notify_all()

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what waits if the broker takes it in that time, say ``offline`` and disconnect."""
        end = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done or not self._client.is_connected(), timeout_s)
            left = len(self._waiting) + self._sent - self._arrived
        if left:
            self._event("mqtt-unsent", level="error", broker=str(self._broker), messages=left)
        if self._client.is_connected():
            said = self._client.publish(self._status, _OFFLINE, qos=1, retain=True)
            while not said.is_published() and time.monotonic() < end:
                time.sleep(0.01)
        self._client.disconnect()
        ending = Thread(target=self._client.loop_stop, daemon=True)  # waits for a connection that is being made
        ending.start()
        ending.join(timeout_s)

    @property
    def _status(self) -> str:
        return f"{self._broker.topic}/status"

    @property
    def _done(self) -> bool:
        return not self._waiting and self._sent == self._arrived

    def _made(self) -> Client:
        client = Client(CallbackAPIVersion.VERSION2)
        if self._broker.tls:
            client.tls_set_context(ssl.create_default_context())
        try:
            if self._broker.user is not None:
                client.username_pw_set(self._broker.user, self._broker.password)
        except ValueError as error:
            raise InputError("the user or the password of `mqtt` is too long") from error
        client.reconnect_delay_set(1, LONGEST_WAIT_S)
        client.will_set(self._status, _OFFLINE, qos=1, retain=True)
        client.on_connect = self._connected
        client.on_connect_fail = self._failed
        client.on_disconnect = self._disconnected
        client.on_publish = self._acknowledged
        return client

    def _send(self) -> None:
        """Hand messages to the client, in a thread of its own: the client's callbacks may hold its locks."""
        while True:
            self._slots.acquire()  # given back when a message is acknowledged
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                message = self._waiting.popleft()
                self._sent += 1
            self._client.publish(self._broker.topic, message, qos=1)

    def _drop(self) -> None:
        self._dropped += 1
        now = time.monotonic()
        if now - self._told >= _TELL_S:
            self._told = now
            self._event("mqtt-dropped", level="error", broker=str(self._broker), messages=self._dropped)

    def _connected(
        self, client: Client, data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._event("mqtt-refused", level="error", broker=str(self._broker), why=str(reason))
            return
        self._own.add(client.publish(self._status, _ONLINE, qos=1, retain=True).mid)
        self._event("mqtt-connected", broker=str(self._broker), waiting=len(self._waiting), dropped=self._dropped)

    def _failed(self, client: Client, data: Any) -> None:
        error = sys.exc_info()[1]  # the client calls this while it handles the error, and does not tell it
        why = one_line(error) if error else "no connection"
        waiting = len(self._waiting)
        self._event("mqtt-unreachable", level="error", broker=str(self._broker), waiting=waiting, why=why)

    def _disconnected(
        self, client: Client, data: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if not self._closing:
            self._event("mqtt-disconnected", level="error", broker=str(self._broker), why=str(reason))

    def _acknowledged(self, client: Client, data: Any, number: int, reason: ReasonCode, properties: Properties) -> None:
        if number in self._own:
            self._own.remove(number)
            return
        self._slots.release()
        with self._changed:
            self._arrived += 1
            self._changed.notify_all()
