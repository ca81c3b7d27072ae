"""``POST /predict``, ``qdeploy.Client`` and ``qdeploy predict --url``: the answers of ``qdeploy predict``."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qdeploy
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import ImageError, InputError
from qdeploy.core.image import MAX_PIXELS
from qdeploy.core.image_formats import MAX_FILE_BYTES
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.serve.client import Client, ServerError
from tests.confident import confident
from tests.serve.running import FP32, INT8, Running, in_process, in_thread

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))
LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with in_thread([INT8, f"float={FP32}"]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    with Client(server.url) as connected:
        yield connected


def encoded(form: str, size: tuple[int, int] = (90, 60), mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(1)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(stream, form)
    return stream.getvalue()


def encoded_pixels(pixels: np.ndarray[Any, Any]) -> bytes:
    """Return a PNG file of some pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def form(files: dict[str, bytes], boundary: str = "x1y2") -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + data
        for name, data in files.items()
    ]
    return b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()]), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }


@pytest.mark.parametrize(
    "data",
    [
        encoded("PNG"),
        encoded("JPEG"),
        encoded("WEBP"),
        encoded("BMP"),
        encoded("PNG", mode="RGBA"),
        encoded("PNG", mode="L"),
    ],
    ids=["png", "jpeg", "webp", "bmp", "alpha", "grey"],
)
def test_a_file_gets_the_answer_of_predict(server: Running, data: bytes) -> None:
    expected = qdeploy.load(INT8)(data)
    reply = server.send("POST", "/predict?top=all", data)
    assert reply.status == 200
    assert [(p["label"], p["index"]) for p in reply.json["predictions"]] == [
        (r.label, r.index) for r in expected.top(10)
    ]
    for found, wanted in zip(reply.json["predictions"], expected.top(10), strict=True):
        assert found["probability"] == pytest.approx(wanted.probability, abs=1e-6)
    assert set(reply.json["latency_ms"]) == {"queue", "decode", "infer"}
    assert all(t >= 0 for t in reply.json["latency_ms"].values())


def test_the_query_chooses_model_and_number(server: Running) -> None:
    data = EXAMPLES[1].read_bytes()
    reply = server.send("POST", "/predict?model=float&version=1&top=2", data)
    assert (reply.json["model"], reply.json["version"]) == ("float", "1")
    assert len(reply.json["predictions"]) == 2
    assert len(server.send("POST", "/predict", data).json["predictions"]) == 5
    for query in ("top=0", "top=x", "top=-1", "labels=3", "top=99999999999999999999", f"top=000000001{'0' * 5000}"):
        reply = server.send("POST", f"/predict?{query}", data)
        assert (reply.status, reply.json["reason"]) == (400, "bad-request"), query
    assert server.send("POST", "/predict?model=none", data).json["reason"] == "unknown-model"


def test_a_form_of_files(server: Running) -> None:
    body, headers = form({"a.png": EXAMPLES[0].read_bytes()})
    single = server.send("POST", "/predict", body, headers).json
    assert single["predictions"][0]["label"] == "Ankle boot"
    files = {
        EXAMPLES[1].name: EXAMPLES[1].read_bytes(),
        'b"<script>.png': b"nothing",
        "c.png": EXAMPLES[2].read_bytes(),
    }
    body, headers = form(files)
    images = server.send("POST", "/predict?top=1", body, headers).json["images"]
    assert [i.get("reason") for i in images] == [None, "unsupported-format", None]
    assert [images[0]["predictions"][0]["label"], images[2]["predictions"][0]["label"]] == ["Bag", "Coat"]
    assert images[0]["image"] == EXAMPLES[1].name


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nabc", "multipart/form-data; boundary=x"),
        (b"nonsense", "multipart/form-data; boundary=x"),
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
        (form({f"{i}.png": b"x" for i in range(65)}, "x")[0], "multipart/form-data; boundary=x"),
        (form({"a.png": b"x"}, "x" * 5000)[0], f"multipart/form-data; boundary={'x' * 5000}"),
    ],
    ids=["no boundary", "empty", "cut off", "nonsense", "no file", "65 files", "long boundary"],
)
def test_a_bad_form(server: Running, body: bytes, kind: str) -> None:
    reply = server.send("POST", "/predict", body, {"Content-Type": kind})
    assert (reply.status, reply.json["reason"]) == (400, "bad-form")


def bomb() -> bytes:
    """A PNG of 144 megapixels in 140 kB."""
    stream = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(stream, "PNG")
    return stream.getvalue()


BAD = {
    "empty": (400, "empty", b""),
    "text": (415, "unsupported-format", b"hello there"),
    "icon": (415, "unsupported-format", b"\0\0\1\0" + bytes(40)),
    "damaged gif": (400, "damaged", b"GIF89a" + bytes(40)),
    "pdf": (415, "unsupported-format", b"%PDF-1.7"),
    "cut off": (400, "truncated", encoded("JPEG")[:-200]),
    "png cut off": (400, "truncated", encoded("PNG")[:300]),
    "damaged": (400, "damaged", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "bomb": (413, "too-many-pixels", bomb()),
    "too large a file": (413, "too-large", bytes(MAX_FILE_BYTES + 1)),
    "too large a request": (413, "too-large", bytes(80 * 2**20)),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_image_is_refused(server: Running, what: str) -> None:
    status, reason, data = BAD[what]
    reply = server.send("POST", "/predict", data)
    assert (reply.status, reply.json["reason"]) == (status, reason)
    assert server.send("POST", "/predict", EXAMPLES[1].read_bytes()).status == 200


def test_a_bomb_costs_little_memory(tmp_path: Path) -> None:
    assert MAX_PIXELS < 12_000**2
    data = bomb()
    with in_process(INT8, cwd=tmp_path) as server:
        server.running.send("POST", "/predict", EXAMPLES[0].read_bytes())
        before = server.running.get("/report").json["memory"]["peak_bytes"]
        begin = time.perf_counter()
        assert server.running.send("POST", "/predict", data).status == 413
        assert time.perf_counter() - begin < 1.0
        grown = server.running.get("/report").json["memory"]["peak_bytes"] - before
        assert grown < 50e6
    assert peak_memory_bytes() > 50e6, "the reading works"


def test_the_client(client: Client) -> None:
    local = qdeploy.load(INT8)
    answers = client([*EXAMPLES[:3], str(EXAMPLES[3]), EXAMPLES[4].read_bytes()])
    for found, path in zip(answers, EXAMPLES, strict=False):
        wanted = local(path)
        assert found.labels == LABELS
        assert found.label == wanted.label
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-6)
    assert client.ready()
    assert {m["name"] for m in client.models()} == {"nano-fashion-mnist-int8", "float"}
    assert client.metadata("float")["platform"] == "onnxruntime_onnx"
    assert client.report()["models"][0]["precision"] == "int8"


def test_the_clients_errors(server: Running, client: Client, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        client(tmp_path / "none.png")
    with pytest.raises(ImageError, match="unknown format") as caught:
        client(b"hello")
    assert caught.value.reason == "unsupported-format"
    with (
        pytest.raises(ServerError, match="there is no model 'none'") as refused,
        Client(server.url, model="none") as other,
    ):
        other(EXAMPLES[0])
    assert (refused.value.status, refused.value.reason) == (404, "unknown-model")
    with pytest.raises(ServerError, match="is `qdeploy serve` running there"):
        Client("http://127.0.0.1:9")(EXAMPLES[0])
    assert not Client("http://127.0.0.1:9", timeout_s=1).ready()
    odd = ("http://[::1", "http://a..b", f"http://{'a' * 64}", "http://a b", "http://a/b c", "http://a\nb")
    for url in ("ftp://x", "http://", "http://x:port", "", *odd):
        with pytest.raises(InputError, match="no HTTP address"):
            Client(url)
    for token in ("\u00fc" * 16, "\u20ac" * 16, f"{'a' * 16}\nX: y"):
        with pytest.raises(InputError, match="`token`"):
            Client(server.url, token=token)
    with Client(f"{server.url}/\u00fc") as other, pytest.raises(ServerError, match="there is nothing at"):
        other(EXAMPLES[0])


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"predictions": 5, "latency_ms": {}}',
        b'{"predictions": [], "latency_ms": {"queue": 0, "decode": 0, "infer": 0}}',
        b'{"predictions": [{"label": "a", "index": 0, "probability": "much"}]}',
        b'{"predictions": [{"label": "a", "index": 0, "probability": 1.0}], "latency_ms": {}}',
    ],
)
def test_another_server_is_told_from_ours(answer: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with (
            Client(f"http://127.0.0.1:{other.server_port}") as client,
            pytest.raises(ServerError, match="is no qdeploy server"),
        ):
            client(EXAMPLES[0])
        other.shutdown()


def test_the_client_survives_a_server_that_was_started_again(tmp_path: Path) -> None:
    with in_thread() as first:
        client = Client(first.url)
        assert client(EXAMPLES[1]).label == "Bag"
        port = first.address[1]
    with pytest.raises(ServerError):
        client(EXAMPLES[1])
    with in_thread(port=port):
        assert client(EXAMPLES[1]).label == "Bag"
    client.close()


def test_the_client_opens_another_connection_when_the_server_closed_an_idle_one() -> None:
    with in_thread(idle_timeout_s=1.0) as server, Client(server.url) as client:
        assert client(EXAMPLES[1]).label == "Bag"
        time.sleep(1.5)
        assert client(EXAMPLES[1]).label == "Bag"


def test_predict_by_a_server_prints_what_predict_prints(
    server: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"hello")
    words = [*map(str, EXAMPLES), str(bad)]
    codes, lines = [], []
    for more in (["--url", server.url], ["--model", str(INT8)]):
        codes.append(run(["predict", "--json", *words, *more]))
        lines.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert codes == [2, 2]
    for remote, own in zip(*lines, strict=True):
        assert remote["image"] == own["image"]
        assert remote.get("reason") == own.get("reason")
        assert [p["label"] for p in remote.get("predictions", [])] == [p["label"] for p in own.get("predictions", [])]
    table = tmp_path / "answers.csv"
    assert run(["predict", *words, "--url", server.url, "--csv", str(table)]) == 2
    assert len(table.read_text().splitlines()) == len(words) + 1
    assert run(["predict", words[0], "--url", server.url, "--model", "none"]) == 2
    assert "there is no model 'none'" in capsys.readouterr().err


def test_below_the_threshold_the_server_says_unknown(tmp_path: Path) -> None:
    model = confident(SHIPPED / "model.int8.onnx", tmp_path / "model.onnx", temperature=1.5, threshold=6.5)
    files = {path.name: path.read_bytes() for path in EXAMPLES}
    expected = [qdeploy.load(model)(data) for data in files.values()]
    assert {p.unknown for p in expected} == {False, True}
    with in_thread([str(model)]) as server, Client(server.url) as client:
        body, headers = form(files)
        rows = server.send("POST", "/predict", body, headers).json["images"]
        for row, (name, data), wanted in zip(rows, files.items(), expected, strict=True):
            assert (row["image"], row["label"], row["unknown"]) == (name, wanted.label, wanted.unknown)
            assert row["score"] == pytest.approx(wanted.score, abs=1e-4)
            assert row["predictions"][0]["label"] == wanted.would_be
            answer = client(data)
            assert (answer.label, answer.would_be, answer.unknown) == (wanted.label, wanted.would_be, wanted.unknown)
            assert answer.score == pytest.approx(wanted.score, abs=1e-4)
    with in_thread([str(model)], abstain=False) as server:
        answer = server.send("POST", "/predict", EXAMPLES[0].read_bytes()).json
        assert not {"label", "unknown", "score"} & set(answer)
