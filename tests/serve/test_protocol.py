"""The Open Inference Protocol: Triton's own client gets the right answers, and bad requests the right refusals."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

import qdeploy
from qdeploy.runtime.classifier import Classifier
from qdeploy.serve.body import decompressed
from qdeploy.serve.refusal import RefusedError
from tests.serve.running import FP32, INT8, Reply, Running, in_thread

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))
SIZE = 64 * 64 * 3
NAME = "int8"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with in_thread(
        [f"{NAME}={INT8}", f"{NAME}={FP32}", f"fp32={FP32}"], max_body_bytes=300_000, max_images=16
    ) as running:
        yield running


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with qdeploy.load(INT8) as opened:
        yield opened


@pytest.fixture(scope="module")
def images(classifier: Classifier) -> NDArray[np.uint8]:
    return np.stack([classifier.card.preprocessing(p) for p in EXAMPLES[:5]])


def infer(server: Running, request: Any, binary: bytes = b"", **headers: str) -> Reply:
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    more = {"Inference-Header-Content-Length": str(len(text))} if binary else {}
    return server.send("POST", f"/v2/models/{NAME}/versions/1/infer", text + binary, {**more, **headers})


def tensor(**changes: Any) -> dict[str, Any]:
    given = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [7] * SIZE, **changes}
    return {k: v for k, v in given.items() if v is not None}


def request(**changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor(**changes)]}


def wanting(parameters: dict[str, Any]) -> dict[str, Any]:
    return {**request(), "outputs": [{"name": "logits", "parameters": parameters}]}


def triton_input(images: NDArray[np.uint8], binary: bool) -> Any:
    given = tritonclient.http.InferInput("image", list(images.shape), "UINT8")
    given.set_data_from_numpy(images, binary_data=binary)
    return given


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritons_client_gets_the_classifiers_answers(
    server: Running,
    classifier: Classifier,
    images: NDArray[np.uint8],
    binary_in: bool,
    binary_out: bool,
    compression: str | None,
) -> None:
    logits, probabilities = classifier.session.infer(images)
    outputs = [tritonclient.http.InferRequestedOutput(n, binary_data=binary_out) for n in ("probabilities", "logits")]
    with tritonclient.http.InferenceServerClient(server.host) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME, "1")
        for wanted in (outputs, None):
            answer = client.infer(
                NAME,
                [triton_input(images, binary_in)],
                model_version="1",
                outputs=wanted,
                request_id="seven",
                request_compression_algorithm=compression,
            )
            np.testing.assert_array_equal(answer.as_numpy("logits"), logits)
            np.testing.assert_array_equal(answer.as_numpy("probabilities"), probabilities)
            head = answer.get_response()
            assert (head["id"], head["model_name"], head["model_version"]) == ("seven", NAME, "1")


def test_tritons_asynchronous_client(server: Running, classifier: Classifier, images: NDArray[np.uint8]) -> None:
    async def ask() -> Any:
        async with tritonclient.http.aio.InferenceServerClient(server.host) as client:
            given = tritonclient.http.aio.InferInput("image", list(images.shape), "UINT8")
            given.set_data_from_numpy(images)
            many = await asyncio.gather(*(client.infer(NAME, [given], model_version="1") for _ in range(8)))
            return [a.as_numpy("logits") for a in many]

    logits, _ = classifier.session.infer(images)
    for found in asyncio.run(ask()):
        np.testing.assert_array_equal(found, logits)


@pytest.mark.parametrize("shape", [[3], [3, 1]])
@pytest.mark.parametrize("binary", [True, False])
def test_encoded_images(server: Running, classifier: Classifier, binary: bool, shape: list[int]) -> None:
    files = [p.read_bytes() for p in EXAMPLES[:3]]
    expected = classifier.classify(np.stack([classifier.card.preprocessing(f) for f in files]))
    outputs = [{"name": "probabilities"}]
    if binary:
        blob = b"".join(len(f).to_bytes(4, "little") + f for f in files)
        given = tensor(datatype="BYTES", shape=shape, data=None, parameters={"binary_data_size": len(blob)})
        reply = infer(server, {"inputs": [given], "outputs": outputs}, blob)
    else:
        texts = [base64.b64encode(f).decode() for f in files]
        reply = infer(server, {"inputs": [tensor(datatype="BYTES", shape=shape, data=texts)], "outputs": outputs})
    assert reply.status == 200, reply.body
    (output,) = reply.json["outputs"]
    assert output["shape"] == [3, 10]
    np.testing.assert_array_equal(np.reshape(output["data"], (3, 10)), [p.scores for p in expected])


@pytest.mark.parametrize("top", [1, 3, 99])
def test_the_classification_extension(
    server: Running, classifier: Classifier, images: NDArray[np.uint8], top: int
) -> None:
    output = tritonclient.http.InferRequestedOutput("probabilities", class_count=top)
    with tritonclient.http.InferenceServerClient(server.host) as client:
        answer = client.infer(NAME, [triton_input(images, True)], model_version="1", outputs=[output])
    found = answer.as_numpy("probabilities")
    assert found.shape == (5, min(top, 10))
    for row, prediction in zip(found, classifier.classify(images), strict=True):
        for text, ranked in zip(row, prediction.top(top), strict=True):
            value, index, label = text.decode().split(":", 2)
            assert (int(index), label) == (ranked.index, ranked.label)
            assert float(value) == pytest.approx(ranked.probability, abs=1e-6)


def test_nested_data(server: Running, classifier: Classifier, images: NDArray[np.uint8]) -> None:
    logits, _ = classifier.session.infer(images[:2])
    reply = infer(server, request(shape=[2, 64, 64, 3], data=images[:2].tolist()))
    found = np.reshape(reply.json["outputs"][0]["data"], (2, 10))
    np.testing.assert_array_equal(found, logits)


def test_what_the_server_says_of_itself(server: Running) -> None:
    with tritonclient.http.InferenceServerClient(server.host) as client:
        about = client.get_server_metadata()
        assert (about["name"], about["version"]) == ("qdeploy", qdeploy.__version__)
        assert {"binary_tensor_data", "classification", "statistics"} <= set(about["extensions"])
        model = client.get_model_metadata(NAME)
        assert model["versions"] == ["1", "2"]
        assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]
        assert [o["name"] for o in model["outputs"]] == ["logits", "probabilities"]
        config = json_format.ParseDict(client.get_model_config(NAME), model_config_pb2.ModelConfig())
        assert (config.max_batch_size, list(config.input[0].dims)) == (16, [64, 64, 3])
        index = client.get_model_repository_index()
        assert {(m["name"], m["version"], m["state"]) for m in index} == {
            (NAME, "1", "READY"), (NAME, "2", "READY"), ("fp32", "1", "READY"),
        }  # fmt: skip
    assert server.get("/v2/").json == server.get("/v2").json


def test_statistics_count_what_was_asked(server: Running, images: NDArray[np.uint8]) -> None:
    with tritonclient.http.InferenceServerClient(server.host) as client:

        def stats() -> dict[str, Any]:
            (found,) = client.get_inference_statistics("fp32")["model_stats"]
            return found

        before = stats()
        for _ in range(3):
            client.infer("fp32", [triton_input(images, True)])
        after = stats()
        assert after["inference_count"] - before["inference_count"] == 15
        assert after["execution_count"] - before["execution_count"] == 3
        for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            assert after["inference_stats"][part]["count"] - before["inference_stats"][part]["count"] == 3
        assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
        assert after["last_inference"] > before["last_inference"]
        assert len(client.get_inference_statistics()["model_stats"]) == 3


def test_the_latest_version_answers_by_default(server: Running, images: NDArray[np.uint8]) -> None:
    with tritonclient.http.InferenceServerClient(server.host) as client:
        assert client.infer(NAME, [triton_input(images, True)]).get_response()["model_version"] == "2"


GOOD = json.dumps(request()).encode()
PIXELS = bytes([7]) * SIZE
BINARY = request(data=None, parameters={"binary_data_size": SIZE})

BAD: dict[str, tuple[int, str, Any]] = {
    # what, status, reason, and the body: JSON, bytes, or (JSON, binary, headers)
    "binary short": (400, "bad-binary", (BINARY, PIXELS[:-8], {})),
    "binary long": (400, "bad-binary", (BINARY, PIXELS + b"four", {})),
    "header beyond the body": (400, "bad-binary", (BINARY, b"", {"Inference-Header-Content-Length": "999999"})),
    "header negative": (400, "bad-binary", (BINARY, b"", {"Inference-Header-Content-Length": "-5"})),
    "header no number": (400, "bad-binary", (BINARY, b"", {"Inference-Header-Content-Length": "abc"})),
    "header of 40 digits": (400, "bad-binary", (BINARY, b"", {"Inference-Header-Content-Length": "9" * 40})),
    "binary unclaimed": (400, "bad-binary", (request(), PIXELS, {})),
    "binary size a text": (400, "bad-binary", (request(data=None, parameters={"binary_data_size": "x"}), PIXELS, {})),
    "binary and data": (400, "bad-tensor", (request(parameters={"binary_data_size": SIZE}), PIXELS, {})),
    "bad gzip": (400, "bad-encoding", (GOOD, b"", {"Content-Encoding": "gzip"})),
    "gzip cut off": (400, "bad-encoding", (gzip.compress(GOOD)[:-9], b"", {"Content-Encoding": "gzip"})),
    "gzip and more": (400, "bad-encoding", (gzip.compress(GOOD) + b"x", b"", {"Content-Encoding": "gzip"})),
    "br": (415, "unsupported-encoding", (GOOD, b"", {"Content-Encoding": "br"})),
    "gzip bomb": (413, "too-large", (gzip.compress(bytes(10**7)), b"", {"Content-Encoding": "gzip"})),
    "deflate bomb": (413, "too-large", (zlib.compress(bytes(10**7)), b"", {"Content-Encoding": "deflate"})),
    "empty": (400, "bad-json", b""),
    "no JSON": (400, "bad-json", b"image please"),
    "not UTF-8": (400, "bad-json", b'{"id": "\xff"}'),
    "a list": (400, "bad-json", b"[]"),
    "a number": (400, "bad-json", b"7"),
    "cut off": (400, "bad-json", GOOD[:-3]),
    "NaN": (400, "bad-json", b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1], "data": [NaN]}]}'),
    "infinity": (400, "bad-json", b'{"inputs": [{"name": "image", "datatype": "UINT8", "data": [-Infinity]}]}'),
    "too deep": (400, "bad-json", b"[" * 100_000 + b"]" * 100_000),
    "data too deep": (400, "bad-json", b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no inputs": (400, "bad-request", {}),
    "inputs no list": (400, "bad-request", {"inputs": {"name": "image"}}),
    "inputs of numbers": (400, "bad-request", {"inputs": [7]}),
    "no input": (400, "bad-tensor", {"inputs": []}),
    "wrong name": (400, "bad-tensor", request(name="picture")),
    "no name": (400, "bad-tensor", request(name=None)),
    "duplicate input": (400, "bad-tensor", {"inputs": [tensor(), tensor()]}),
    "one more input": (400, "bad-tensor", {"inputs": [tensor(), tensor(name="mask")]}),
    "wrong datatype": (400, "bad-tensor", request(datatype="FP32")),
    "unknown datatype": (400, "bad-tensor", request(datatype="UINT9")),
    "datatype no text": (400, "bad-tensor", request(datatype=8)),
    "no datatype": (400, "bad-tensor", request(datatype=None)),
    "too few values": (400, "bad-tensor", request(data=[7] * (SIZE - 1))),
    "too many values": (400, "bad-tensor", request(data=[7] * (SIZE + 1))),
    "texts": (400, "bad-tensor", request(data=["7"] * SIZE)),
    "null": (400, "bad-tensor", request(data=[None] * SIZE)),
    "true": (400, "bad-tensor", request(data=[True] * SIZE)),
    "floats": (400, "bad-tensor", request(data=[7.5] * SIZE)),
    "256": (400, "bad-tensor", request(data=[256] * SIZE)),
    "-1": (400, "bad-tensor", request(data=[-1] * SIZE)),
    "2^70": (400, "bad-tensor", request(data=[2**70] * SIZE)),
    "data no list": (400, "bad-tensor", request(data=7)),
    "data of lists and values": (400, "bad-tensor", request(data=[[7], 7])),
    "no data": (400, "bad-tensor", request(data=None)),
    "rank 3": (400, "bad-tensor", request(shape=[64, 64, 3])),
    "rank 0": (400, "bad-tensor", request(shape=[])),
    "planes first": (400, "bad-tensor", request(shape=[1, 3, 64, 64])),
    "another size": (400, "bad-tensor", request(shape=[1, 32, 32, 3])),
    "no images": (400, "bad-tensor", request(shape=[0, 64, 64, 3], data=[])),
    "too many images": (400, "bad-tensor", request(shape=[17, 64, 64, 3], data=[])),
    "negative dimension": (400, "bad-tensor", request(shape=[-1, 64, 64, 3])),
    "2^60": (400, "bad-tensor", request(shape=[2**60, 64, 64, 3])),
    "fractional dimension": (400, "bad-tensor", request(shape=[1.0, 64, 64, 3])),
    "true as dimension": (400, "bad-tensor", request(shape=[True, 64, 64, 3])),
    "shape no list": (400, "bad-tensor", request(shape="1,64,64,3")),
    "no shape": (400, "bad-tensor", request(shape=None)),
    "unknown output": (400, "bad-request", {**request(), "outputs": [{"name": "boxes"}]}),
    "duplicate output": (400, "bad-request", {**request(), "outputs": [{"name": "logits"}, {"name": "logits"}]}),
    "outputs no list": (400, "bad-request", {**request(), "outputs": "logits"}),
    "classification 0": (400, "bad-request", wanting({"classification": 0})),
    "classification true": (400, "bad-request", wanting({"classification": True})),
    "binary_data a text": (400, "bad-request", wanting({"binary_data": "yes"})),
    "binary_data_output a text": (400, "bad-request", {**request(), "parameters": {"binary_data_output": "yes"}}),
    "parameters a list": (400, "bad-request", {**request(), "parameters": []}),
    "id a number": (400, "bad-request", {**request(), "id": 7}),
    "no base64": (400, "bad-tensor", request(datatype="BYTES", shape=[1], data=["???"])),
    "base64 no text": (400, "bad-tensor", request(datatype="BYTES", shape=[1], data=[7])),
    "BYTES of rank 2": (400, "bad-tensor", request(datatype="BYTES", shape=[1, 2], data=["aaaa"])),
    "BYTES too few": (400, "bad-tensor", request(datatype="BYTES", shape=[2], data=["aaaa"])),
    "BYTES no image": (415, "unsupported-format", request(datatype="BYTES", shape=[1], data=["aaaa"])),
    "BYTES empty": (400, "empty", request(datatype="BYTES", shape=[1], data=[""])),
    "BYTES length lies": (
        400,
        "bad-binary",
        (request(datatype="BYTES", shape=[1], data=None, parameters={"binary_data_size": 8}), b"\xff\0\0\0four", {}),
    ),
    "over the limit": (413, "too-large", b" " * 300_001),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_refused_and_the_server_lives(server: Running, what: str) -> None:
    status, reason, given = BAD[what]
    body, binary, headers = given if isinstance(given, tuple) else (given, b"", {})
    reply = infer(server, body, binary, **headers)
    assert reply.status == status, (reply.status, reply.body)
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json) == {"error", "reason"}
    assert reply.json["reason"] == reason, reply.json
    assert len(reply.json["error"]) > 10
    assert server.get("/v2/health/live").status == 200
    assert infer(server, GOOD).status == 200


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_is_not_unpacked(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(bytes(100 * 2**20))
    headers = {b"content-encoding": b"gzip" if pack is gzip.compress else b"deflate"}
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError):
            decompressed(bomb, headers, 2**20)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v2/models/none/infer", 404, "unknown-model"),
        ("POST", f"/v2/models/{NAME}/versions/3/infer", 404, "unknown-version"),
        ("POST", f"/v2/models/{NAME}/versions/x/infer", 404, "unknown-version"),
        ("GET", "/v2/models/none", 404, "unknown-model"),
        ("GET", "/v2/models/none/ready", 404, "unknown-model"),
        ("GET", "/v2/models/none/stats", 404, "unknown-model"),
        ("GET", f"/v2/models/{NAME}/versions/1/other", 404, "unknown-path"),
        ("GET", f"/v2/models/{NAME}/infer", 405, "unknown-method"),
        ("PUT", f"/v2/models/{NAME}/infer", 405, "unknown-method"),
        ("POST", f"/v2/models/{NAME}", 405, "unknown-method"),
        ("POST", "/v2/health/live", 405, "unknown-method"),
        ("GET", "/predict", 405, "unknown-method"),
        ("GET", "/nothing", 404, "unknown-path"),
        ("POST", "/nothing", 404, "unknown-path"),
        ("POST", "/report", 405, "unknown-method"),
        ("DELETE", "/", 405, "unknown-method"),
        ("GET", "/page/../app.py", 404, "unknown-path"),
        ("GET", "/page/__init__.py", 404, "unknown-path"),
        ("POST", "/v2/repository/models/none/load", 404, "unknown-model"),
        ("POST", "/v2/repository/other", 404, "unknown-path"),
    ],
)
def test_a_path_that_is_not_there(server: Running, method: str, path: str, status: int, reason: str) -> None:
    reply = server.send(method, path, GOOD if method == "POST" and path.endswith("infer") else None)
    assert (reply.status, reply.json["reason"]) == (status, reason)
    assert ("allow" in reply.headers) == (status == 405)


def test_head_is_get_without_a_body(server: Running) -> None:
    reply = server.send("HEAD", "/v2/health/live")
    assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", b"400"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000, b"431"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
    ],
)
def test_what_is_not_http_is_refused(server: Running, data: bytes, status: bytes) -> None:
    received = server.raw(data, wait_s=3)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.split()[1] == status, received[:200]
    assert set(json.loads(body)) == {"error", "reason"}
    assert server.get("/v2/health/live").status == 200


def test_chunked_and_slow_and_pipelined_requests_are_answered(server: Running) -> None:
    chunked = b"POST /predict?top=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    image = EXAMPLES[0].read_bytes()
    whole = chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(image), image)
    plain = b"POST /predict?top=1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(image), image)
    received = server.raw(whole + plain + plain, wait_s=2)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.count(b'"predictions": [{"label"') == 3
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    received = server.raw(plain.replace(b"\r\n\r\n", b"\r\n" + offer, 1) + plain, wait_s=2)
    assert received.count(b"HTTP/1.1 200 OK") == 2, "as curl --http2 and Java send it"
    old = server.raw(plain.replace(b"HTTP/1.1", b"HTTP/1.0"), wait_s=2)
    assert b" 200 " in old
    assert b"connection: close" in old
