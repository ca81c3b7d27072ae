"""A small RTSP server with a password: hands on what ffmpeg sends by RTP, interleaved into the TCP connection."""

from __future__ import annotations

import base64
import re
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Lock, Thread


class RtspCamera(ThreadingTCPServer):
    """Shows a generated picture for as long as it is not ended."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, ffmpeg: str, place: Path, password: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Session)
        self.port = int(self.server_address[1])
        self.credentials = base64.b64encode(f"cam:{password}".encode()).decode()
        self.playing: list[socket.socket] = []
        self.lock = Lock()
        self.words: list[str] = []
        """What was asked for."""
        self._packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._packets.bind(("127.0.0.1", 0))
        target = f"rtp://127.0.0.1:{self._packets.getsockname()[1]}?pkt_size=1200"
        picture = ("-re", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=10", "-c:v", "mpeg4", "-g", "5")
        sdp = place / f"camera-{self.port}.sdp"
        self._film = subprocess.Popen([ffmpeg, "-v", "error", *picture, "-f", "rtp", "-sdp_file", sdp, target])
        while not (sdp.exists() and "a=rtpmap" in sdp.read_text()):
            assert self._film.poll() is None
        described = re.sub(r"m=video \d+", "m=video 0", sdp.read_text().replace("SDP:\n", ""))
        self.sdp = described.strip().replace("\r\n", "\n").replace("\n", "\r\n") + "\r\na=control:track\r\n"
        Thread(target=self._hand_on, daemon=True).start()
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def end(self) -> None:
        """Break every connection and take no more."""
        self._film.kill()
        self._film.wait()
        self.shutdown()
        self.server_close()
        with self.lock:
            for client in self.playing:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
            self.playing.clear()
        self._packets.sendto(b"", self._packets.getsockname())

    def _hand_on(self) -> None:
        while packet := self._packets.recv(2000):
            if 200 <= packet[1] <= 204:  # RTCP
                continue
            with self.lock:
                for client in list(self.playing):
                    try:
                        client.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                    except OSError:
                        self.playing.remove(client)
        self._packets.close()


class _Session(StreamRequestHandler):
    server: RtspCamera

    def handle(self) -> None:
        with suppress(OSError):  # a client that has gone
            self._serve()

    def _serve(self) -> None:
        while (head := self._head()) is not None:
            word = head.split(" ", 1)[0]
            self.server.words.append(word)
            answer = self._answer(word, head)
            number = re.search(r"CSeq: *(\d+)", head, re.I)
            assert number is not None
            with self.server.lock:
                self.wfile.write(answer.replace("\r\n", f"\r\nCSeq: {number[1]}\r\n", 1).encode())
                if word == "PLAY" and self.connection not in self.server.playing:
                    self.server.playing.append(self.connection)

    def _head(self) -> str | None:
        lines: list[str] = []
        while True:
            line = self.rfile.readline()
            if not line:
                return None
            if line == b"\r\n":
                return "".join(lines)
            lines.append(line.decode(errors="replace"))

    def _answer(self, word: str, head: str) -> str:
        ok = "RTSP/1.0 200 OK\r\n"
        if word == "OPTIONS":
            return f"{ok}Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n"
        if f"Basic {self.server.credentials}" not in head:
            return 'RTSP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"\r\n\r\n'
        if word == "DESCRIBE":
            sdp = self.server.sdp
            return f"{ok}Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}"
        if word == "SETUP":
            if "RTP/AVP/TCP" not in head:
                return "RTSP/1.0 461 Unsupported transport\r\n\r\n"
            return f"{ok}Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n\r\n"
        return f"{ok}Session: 1\r\n\r\n"
