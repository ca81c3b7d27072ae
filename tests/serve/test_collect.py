"""Images that a server keeps to be labelled: which, how many, and that nobody who asks notices."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdeploy.cli.main import run
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.whole import open_alone
from qdeploy.data.embedded import embedded_source
from qdeploy.serve import CollectConfig
from qdeploy.serve.collect import LOCK, WAITING
from tests.serve.running import INT8, Running, in_thread
from tests.serve.serving import Serving, until


def png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(stream, "PNG")
    return stream.getvalue()


def clothes(count: int) -> Iterator[bytes]:
    return (png(record.source) for record in embedded_source().records["test"][:count])


def noise(seed: int = 0) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


def predict(running: Running, image: bytes) -> Any:
    reply = running.send("POST", "/predict", image)
    assert reply.status == 200
    return reply.json


def told(running: Running) -> Any:
    return running.get("/report").json["server"]["collect"]


def records(folder: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_each_image_is_kept_with_what_was_answered(tmp_path: Path) -> None:
    folder = tmp_path / "collected"
    with in_thread(collect=CollectConfig(folder=folder, below=0.9, share=0)) as running:
        answers = {sha256_of(image): predict(running, image) for image in (noise(), *clothes(60))}
    kept = {r["sha256"]: r for r in records(folder)}
    expected = {
        digest: "unknown" if answer["unknown"] else "uncertain"
        for digest, answer in answers.items()
        if answer["unknown"] or answer["predictions"][0]["probability"] < 0.9
    }
    assert {digest: r["why"] for digest, r in kept.items()} == expected
    assert set(Counter(expected.values())) == {"unknown", "uncertain"}
    assert len(expected) < 40
    artifact = read_artifact(INT8)
    for digest, r in kept.items():
        assert sha256_of((folder / r["image"]).read_bytes()) == digest
        assert r["label"] == answers[digest]["label"]
        assert r["predictions"] == answers[digest]["predictions"]
        assert r["score"] == pytest.approx(answers[digest]["score"], abs=1e-4)
        assert r["would_be"] == r["predictions"][0]["label"]
        assert r["model"]["sha256"] == artifact.sha256
        assert tuple(r["labels"]) == artifact.card.labels
        assert r["time"].endswith("+00:00")
    assert len(list(folder.glob("*.png"))) == len(kept)


def test_without_the_option_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with in_thread() as running:
        predict(running, noise())
        assert "collect" not in running.get("/report").json["server"]
    assert list(tmp_path.iterdir()) == []


def test_sure_answers_are_kept_by_chance(tmp_path: Path) -> None:
    with in_thread(collect=CollectConfig(folder=tmp_path, below=0, share=0.5)) as running:
        sure = [image for image in clothes(120) if not predict(running, image)["unknown"]]
    why = Counter(r["why"] for r in records(tmp_path))
    assert 0.3 * len(sure) < why["random"] < 0.7 * len(sure)


def is_repeated(running: Running, times: int) -> bool:
    return bool(told(running)["repeated"] == times)


def test_nothing_is_kept_twice_even_by_the_next_server(tmp_path: Path) -> None:
    for repeated in (1, 2):
        with in_thread(collect=CollectConfig(folder=tmp_path, share=1)) as running:
            for _ in range(2):
                predict(running, noise())
            assert until(partial(is_repeated, running, repeated))
            assert told(running)["images"] == 1
    (record,) = records(tmp_path)
    assert (tmp_path / record["image"]).read_bytes() == noise()


@pytest.mark.parametrize("limit", [{"most_images": 3}, {"most_bytes": 3 * len(noise()) + 8000}])
def test_a_full_folder_takes_no_more_and_that_is_said_once(limit: dict[str, int], tmp_path: Path) -> None:
    config = CollectConfig(folder=tmp_path, share=1, **limit)
    with in_thread(collect=config) as running:
        for seed in range(8):
            predict(running, noise(seed))  # some wait to be written when the folder is full already
        assert until(lambda: told(running)["full"])
    (event,) = running.seen("collect-full")
    assert event["images"] == len(list(tmp_path.glob("*.png"))) == 3
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= config.most_bytes
    if "most_images" in limit:
        with in_thread(collect=config) as running:
            assert until(lambda: told(running)["full"])
            predict(running, noise(9))
        assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_folder_that_cannot_be_written_is_one_line_and_the_server_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with in_thread(collect=CollectConfig(folder=tmp_path / "file" / "folder", share=1)) as running:
        for seed in range(3):
            predict(running, noise(seed))
        assert until(lambda: told(running)["problem"]) == "Not a directory"
    (event,) = running.seen("collect-failed")
    assert event["level"] == "error"


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_disk_that_ends_within_an_image_leaves_nothing_of_it(tmp_path: Path) -> None:
    """No file may grow above 6,000 bytes, as on a disk that is full then; the image has twice that."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    options = ("--collect", str(tmp_path / "collected"), "--collect-share", "1", str(INT8))
    with Serving(tmp_path, *options, preexec_fn=limit) as serving:
        running = Running(serving.url)
        for seed in range(3):
            predict(running, noise(seed))
        (event,) = until(lambda: serving.events("collect-failed"))
        assert event["why"] == "File too large"
        assert until(lambda: told(running)["left-out"] == 3)
        small = next(clothes(1))
        assert len(small) < 6000
        predict(running, small)  # nothing is tried for a while
    assert [path.name for path in (tmp_path / "collected").iterdir()] == [LOCK]


def test_requests_do_not_wait_for_a_folder_that_does_not_answer(tmp_path: Path) -> None:
    """As when the disk is slow: the lock is held, so that nothing can be written."""
    with in_thread(collect=CollectConfig(folder=tmp_path, share=1)) as running:
        assert until(lambda: (tmp_path / LOCK).exists())
        handle = until(lambda: open_alone(tmp_path / LOCK))
        assert handle is not None
        for seed in range(WAITING + 20):
            predict(running, noise(seed))
        assert told(running)["left-out"] >= 15
        assert list(tmp_path.glob("*.png")) == []
        os.close(handle)
        assert until(lambda: told(running)["images"]) >= 1
    assert WAITING <= len(list(tmp_path.glob("*.png"))) <= WAITING + 5  # what waited is written at the end


def test_forms_and_tensors_are_seen_too(tmp_path: Path) -> None:
    form = b"".join(
        b'--x\r\ncontent-disposition: form-data; name="f"; filename="a"\r\n\r\n' + data + b"\r\n"
        for data in (noise(1), b"no image", noise(2))
    )
    pixels = np.random.default_rng(3).integers(0, 256, (2, 64, 64, 3), np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    with in_thread(collect=CollectConfig(folder=tmp_path, share=1)) as running:
        head = {"content-type": "multipart/form-data; boundary=x"}
        assert running.send("POST", "/predict", form + b"--x--\r\n", head).status == 200
        name = running.get("/report").json["models"][0]["name"]
        body = json.dumps({"inputs": [tensor]}).encode()
        assert running.send("POST", f"/v2/models/{name}/infer", body).status == 200
        assert running.service is not None
        running.service.classify(noise(4))
    assert {path.read_bytes() for path in tmp_path.glob("*.png")} == {noise(1), noise(2), noise(4)}
    found = [np.asarray(Image.open(path)) for path in tmp_path.glob("*.ppm")]
    assert sorted(p.tobytes() for p in found) == sorted(p.tobytes() for p in pixels)


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="it is a file, not a folder"):
        CollectConfig(folder=tmp_path / "file")
    for words, said in (
        (["--collect-images", "3"], "give the folder with --collect"),
        (["--collect", str(tmp_path), "--collect-below", "2"], "--collect-below must be between 0 and 1, found 2"),
        (["--collect", str(tmp_path), "--collect-mb", "0"], "--collect-mb must be between 0.01"),
        (
            ["--collect", str(tmp_path), "--collect-mb", "nan"],
            "--collect-mb must be between 0.01 and 1000000 MiB, found",
        ),
    ):
        assert run(["serve", *words]) == 2
        assert said in capsys.readouterr().err
