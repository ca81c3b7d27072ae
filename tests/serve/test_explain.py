"""``POST /explain``: the maps of `qdeploy explain`, beside the queue."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdeploy.checks.explain import Explainer, Explanation, explain, overlay
from qdeploy.runtime.classifier import ImageLike
from tests.serve.running import FP32, INT8, in_thread
from tests.serve.serving import until

BAG = Path(__file__).parents[2] / "examples" / "bag.png"


def test_it_is_what_the_command_shows_of_the_file_that_serves() -> None:
    (expected,) = explain([BAG], [INT8])
    found = expected[0]
    assert found.class_map is not None
    with in_thread() as server:
        for _ in range(2):
            answer = server.send("POST", "/explain", BAG.read_bytes())
            assert answer.status == 200
            assert (answer.json["label"], answer.json["version"]) == ("Bag", "1")
            assert answer.json["probability"] == pytest.approx(found.probability, abs=1e-6)
            (picture,) = answer.json["pictures"]
            assert picture["caption"] == f"class map of Bag, logit {found.class_map.logit:.2f}"
            shown = Image.open(io.BytesIO(base64.b64decode(picture["png_base64"])))
            assert np.array_equal(np.asarray(shown), np.asarray(overlay(found.pixels, found.class_map.values)))
        assert server.get("/report").json["since_start"]["images"] == 0


def test_normal_requests_do_not_wait_for_it_and_a_second_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, own = threading.Event(), threading.Event(), Explainer.__call__

    def slow(self: Explainer, image: ImageLike, label: str | None = None) -> Explanation:
        begun.set()
        assert go_on.wait(30)
        return own(self, image, label)

    monkeypatch.setattr(Explainer, "__call__", slow)
    statuses = []
    with in_thread() as server:
        asking = threading.Thread(
            target=lambda: statuses.append(server.send("POST", "/explain", BAG.read_bytes()).status)
        )
        asking.start()
        assert begun.wait(30)
        assert server.send("POST", "/predict", BAG.read_bytes()).status == 200
        refused = server.send("POST", "/explain", BAG.read_bytes())
        assert (refused.status, refused.json["reason"]) == (503, "busy")
        go_on.set()
        asking.join(30)
        assert statuses == [200]
        assert server.send("POST", "/explain", BAG.read_bytes()).status == 200


def test_what_cannot_be_explained_is_refused() -> None:
    with in_thread(formats=("jpeg",)) as server:
        assert server.send("POST", "/explain", b"hello").status == 415
        assert server.send("POST", "/explain", BAG.read_bytes()).status == 415, "its formats are those of the server"
        assert server.get("/explain").status == 405
        assert server.send("POST", "/explain?model=other", BAG.read_bytes()).status == 404
        assert server.send("POST", "/explain?size=9", BAG.read_bytes()).status == 400


def test_a_new_file_is_explained_by_itself(tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    place.write_bytes(INT8.read_bytes())
    with in_thread((f"clothes={place}",)) as server:
        first = server.send("POST", "/explain", BAG.read_bytes()).json
        place.write_bytes(FP32.read_bytes())
        until(lambda: server.get("/report").json["models"][0]["swaps"] == 1)
        second = server.send("POST", "/explain", BAG.read_bytes()).json
    assert first["pictures"][0]["png_base64"] != second["pictures"][0]["png_base64"]
