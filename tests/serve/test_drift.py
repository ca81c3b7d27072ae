"""A server says when its answers cease to be like those to the validation images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import InputError
from qdeploy.serve import ServeConfig
from qdeploy.serve.models import Models
from qdeploy.serve.report import compose, snapshot
from tests.drifting import Pixels, clothes, inverted
from tests.resealed import reseal
from tests.serve.running import FP32, INT8, Running, in_thread
from tests.serve.serving import until


def send(server: Running, images: list[Pixels]) -> None:
    """Have images classified, each by a request of its own."""
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        assert server.send("POST", "/predict", file.getvalue()).status == 200


def tensor(images: list[Pixels]) -> bytes:
    """Return a request of the protocol with noise-free pixels of the model's size."""
    pixels = np.stack([np.asarray(Image.fromarray(i).convert("RGB").resize((64, 64))) for i in images])
    data = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return json.dumps({"inputs": [data]}).encode()


def test_a_server_alarms_recovers_and_tells_everywhere() -> None:
    images = clothes(300)
    with in_thread(drift_window=100) as server:
        (model,) = server.get("/report").json["models"]
        assert model["drift"]["differs"] is None
        assert model["drift"]["text"].endswith("is known after 100 of them, 0 so far")
        send(server, images[:100])
        (model,) = server.get("/report").json["models"]
        assert model["drift"]["differs"] is False
        assert model["drift"]["text"].startswith("the last 100 answers are like those to the validation images")
        for i in range(0, 100, 25):
            reply = server.send("POST", f"/v2/models/{model['name']}/infer", tensor(inverted(images[i : i + 25])))
            assert reply.status == 200
        (model,) = server.get("/report").json["models"]
        drift = model["drift"]
        assert drift["differs"] is True
        assert drift["text"].startswith("the last 100 answers differ from those to the validation images: lower scores")
        assert (drift["windows"], drift["alarms"], drift["so_far"], drift["false_alarms"]) == (2, 1, 0, 0.01)
        assert drift["latest"]["score"]["psi"] > 0.25
        metrics = server.get("/metrics").body.decode()
        name = f'model="{model["name"]}"'
        for line in (
            f'qdeploy_drift{{{name},version="1"}} 1.0',
            f'qdeploy_drift_windows_total{{{name},version="1"}} 2.0',
            f'qdeploy_drift_alarms_total{{{name},version="1"}} 1.0',
            f'qdeploy_drift_psi{{{name},of="score",version="1"}} ',
        ):
            assert line in metrics
        (event,) = until(lambda: server.seen("drift"))
        assert event["why"] == drift["text"]
        send(server, images[200:300])
        until(lambda: server.seen("drift-ended"))
        (model,) = server.get("/report").json["models"]
        assert (model["drift"]["differs"], model["drift"]["alarms"]) == (False, 1)


def test_a_refused_image_is_no_answer() -> None:
    with in_thread(drift_window=100) as server:
        send(server, clothes(3))
        assert server.send("POST", "/predict", b"hello").status == 415
        (model,) = server.get("/report").json["models"]
    assert model["drift"]["so_far"] == 3


def test_it_can_be_turned_off_and_cards_of_earlier_versions_have_none(tmp_path: Path) -> None:
    old = reseal(INT8, tmp_path / "old.onnx", lambda card: card["confidence"].pop("reference"))
    for given, settings in (((INT8,), {"drift_window": 0}), ((old,), {})):
        with in_thread(given, **settings) as server:
            send(server, clothes(2))
            (model,) = server.get("/report").json["models"]
            assert model["drift"] is None
            assert "qdeploy_drift{" not in server.get("/metrics").body.decode()


def test_a_new_file_begins_anew(tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    place.write_bytes(INT8.read_bytes())
    with in_thread((f"clothes={place}",), drift_window=100) as server:
        send(server, inverted(clothes(100)))
        until(lambda: server.seen("drift"))
        place.write_bytes(FP32.read_bytes())
        until(lambda: server.get("/report").json["models"][0]["swaps"] == 1)
        (model,) = server.get("/report").json["models"]
        assert (model["drift"]["windows"], model["drift"]["differs"]) == (0, None)


def test_of_several_workers_one_whose_answers_differ_is_shown_and_the_counts_are_of_all() -> None:
    with in_thread(drift_window=100) as server:
        assert server.service is not None
        before = snapshot(server.service)
        send(server, inverted(clothes(130)))
        after = json.loads(json.dumps(snapshot(server.service)))
    before["models"][0]["drift"]["so_far"] = 99  # more than the one whose answers differ has in its window
    for snapshots in ([before, after, before], [after, before, after]):
        (model,) = compose(snapshots)["models"]
        assert model["drift"]["differs"] is True
        assert model["drift"]["windows"] == model["drift"]["alarms"] == sum(s is after for s in snapshots)


def test_each_worker_may_use_its_share_of_the_false_alarms() -> None:
    config = ServeConfig(port=0, drift_window=200)
    object.__setattr__(config, "workers", 4)  # more than this machine may have cores
    models = Models([str(INT8)], config, lambda *_, **__: None)
    drift = models._drift_watch(read_artifact(INT8).card)
    assert drift is not None
    assert (drift.window, drift.false_alarms) == (200, 0.0025)


@pytest.mark.parametrize("window", [-1, 1, 99, 1_000_001])
def test_a_window_out_of_range_is_refused(window: int) -> None:
    with pytest.raises(InputError, match="`drift_window` must be 0 or between 100 and 1000000"):
        ServeConfig(drift_window=window)
