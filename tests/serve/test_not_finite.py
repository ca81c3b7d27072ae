"""A model whose answer to an image is NaN: the request gets 500 and a reason, never a ranking; the server lives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import ImageError
from qdeploy.serve.client import Client
from qdeploy.serve.refusal import RefusedError
from tests.runtime.test_not_finite import BLACK, GREY
from tests.serve.running import Running, in_thread
from tests.serve.test_images import encoded_pixels, form
from tests.unsound import unsound


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with in_thread([unsound(SHIPPED / "model.int8.onnx", tmp_path_factory.mktemp("m") / "model.onnx")]) as running:
        yield running


def infer(server: Running, pixels: np.ndarray[Any, Any], *outputs: dict[str, Any]) -> tuple[int, Any]:
    request = {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}]
    }
    name = json.loads(server.send("POST", "/v2/repository/index", b"{}").body)[0]["name"]
    body = json.dumps({**request, **({"outputs": list(outputs)} if outputs else {})}).encode()
    reply = server.send("POST", f"/v2/models/{name}/infer", body)
    return reply.status, reply.json if reply.status != 200 or not outputs else reply.body


OUTPUTS: list[list[dict[str, Any]]] = [
    [],
    [{"name": "logits"}],
    [{"name": "probabilities", "parameters": {"binary_data": True}}],
    [{"name": "probabilities", "parameters": {"classification": 3}}],
]


@pytest.mark.parametrize("outputs", OUTPUTS, ids=["all", "logits", "binary", "classification"])
def test_the_protocol_refuses_it(server: Running, outputs: list[dict[str, Any]]) -> None:
    status, refusal = infer(server, np.stack([GREY, BLACK]), *outputs)
    assert status == 500
    assert refusal["reason"] == "not-finite"
    assert "the model's answer to it is not finite" in refusal["error"]
    assert infer(server, GREY[None], *outputs)[0] == 200


def test_an_image_file_is_refused(server: Running) -> None:
    reply = server.send("POST", "/predict", encoded_pixels(BLACK))
    assert (reply.status, reply.json["reason"]) == (500, "not-finite")
    assert server.send("POST", "/predict", encoded_pixels(GREY)).status == 200


def test_of_several_files_the_others_are_answered(server: Running) -> None:
    body, headers = form({"a.png": encoded_pixels(GREY), "b.png": encoded_pixels(BLACK), "c.png": b"no image"})
    reply = server.send("POST", "/predict", body, headers)
    assert reply.status == 200
    answers = reply.json["images"]
    assert [a.get("reason") for a in answers] == [None, "not-finite", "unsupported-format"]
    assert answers[0]["predictions"]


def test_the_client_raises_it(server: Running, tmp_path: Path) -> None:
    with Client(server.url) as client:
        with pytest.raises(ImageError, match="the model's answer to it is not finite") as caught:
            client(encoded_pixels(BLACK))
        assert caught.value.reason == "not-finite"
        assert client(encoded_pixels(GREY)).label


def test_what_is_not_http_is_refused_too(server: Running) -> None:
    assert server.service is not None
    with pytest.raises(RefusedError, match="the model's answer to it is not finite") as caught:
        server.service.classify(encoded_pixels(BLACK))
    assert caught.value.status == 500
    assert server.service.classify(encoded_pixels(GREY))[0].label
