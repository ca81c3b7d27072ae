"""The kit for Triton: its configuration in Triton's schema, its README's Python, and a real server if one is there."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tritonclient import http as triton
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

import qdeploy
from qdeploy.core.artifact import read_artifact
from qdeploy.core.engine_file import EngineHeader, pack
from qdeploy.export import write_kits
from qdeploy.export.kits.triton import base_name, model_name
from qdeploy.export.report.record import ExportReport
from qdeploy.serve.models import NAME

pytestmark = pytest.mark.xdist_group("triton")
SERVER = "QDEPLOY_TRITONSERVER"
START_S = 60.0
EXAMPLES = Path(__file__).parents[2] / "examples"
STAND_IN = """
from pathlib import Path
import triton_python_backend_utils as triton
from qdeploy.core.artifact import read_artifact
from qdeploy.runtime.session import open_session

class TritonPythonModel:
    def initialize(self, args):
        self.session = open_session(read_artifact(Path(args["model_repository"], "1", "model.onnx")), threads=1)

    def execute(self, requests):
        return [self.answer(triton.get_input_tensor_by_name(r, "image").as_numpy()) for r in requests]

    def answer(self, images):
        outputs = zip(("logits", "probabilities"), self.session.infer(images))
        return triton.InferenceResponse([triton.Tensor(*output) for output in outputs])
"""
"""What ONNX Runtime's backend does, which nvidia-pytriton's server does not have, by its python backend."""


@pytest.fixture(scope="module")
def kit(exported: ExportReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of an export that has engines, too."""
    export = shutil.copytree(exported.out, tmp_path_factory.mktemp("triton") / "export")
    card = read_artifact(export / "model.int8.onnx").card
    for short, builder in (("trt", "tensorrt"), ("rtx", "tensorrt_rtx")):
        header = EngineHeader(
            builder=builder,
            builder_version="10.13",
            compute_capabilities=("9.0",),
            platform="Linux x86_64",
            min_batch=1,
            opt_batch=8,
            max_batch=32,
            precision="int8",
            source_sha256="0" * 64,
            card=card.to_dict(),
        )
        (export / f"model.int8.{short}.engine").write_bytes(pack(header, b"a plan of " + short.encode()))
    return write_kits(export, ["triton"])["triton"]


def config(kit: Path, name: str) -> Any:
    """Read a model's configuration as Triton does: an unknown field or word is an error."""
    text = (kit / "models" / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize(
    ("kind", "platform", "file", "most", "where"),
    [
        ("fp32", "onnxruntime_onnx", "model.onnx", 64, "KIND_AUTO"),
        ("int8", "onnxruntime_onnx", "model.onnx", 64, "KIND_CPU"),
        ("int8_trt", "tensorrt_plan", "model.plan", 32, "KIND_GPU"),
    ],
)
def test_a_model_of_each_file(
    kit: Path, int8_file: Path, kind: str, platform: str, file: str, most: int, where: str
) -> None:
    card = read_artifact(int8_file).card
    name = f"{card.name}_{kind}"
    found = config(kit, name)
    assert (found.name, found.platform, found.max_batch_size) == (name, platform, most)
    assert [(i.name, i.data_type, list(i.dims)) for i in found.input] == [
        ("image", model_config_pb2.TYPE_UINT8, [card.preprocessing.size] * 2 + [3])
    ]
    assert [(o.name, o.data_type, list(o.dims), o.label_filename) for o in found.output] == [
        (name, model_config_pb2.TYPE_FP32, [len(card.labels)], "labels.txt") for name in ("logits", "probabilities")
    ]
    assert found.HasField("dynamic_batching")
    assert list(found.dynamic_batching.preferred_batch_size) == ([8] if platform == "tensorrt_plan" else [])
    assert [g.kind for g in found.instance_group] == [model_config_pb2.ModelInstanceGroup.Kind.Value(where)]
    assert [w.batch_size for w in found.model_warmup] == [1, most]
    assert ("intra_op_thread_count" in found.parameters) == (where == "KIND_CPU")
    assert (kit / "models" / name / "labels.txt").read_text().splitlines() == list(card.labels)
    assert [p.name for p in (kit / "models" / name / "1").iterdir()] == [file]


def test_the_files_are_those_of_the_export(kit: Path, int8_file: Path) -> None:
    models = kit / "models"
    name = read_artifact(int8_file).card.name
    assert (models / f"{name}_int8" / "1" / "model.onnx").read_bytes() == int8_file.read_bytes()
    assert (models / f"{name}_int8_trt" / "1" / "model.plan").read_bytes() == b"a plan of trt"
    assert {p.name for p in models.iterdir()} == {
        f"{name}_{k}" for k in ("fp32", "int8", "int8_trt", "decode", "images")
    }
    assert "no backend for it: model.int8.rtx.engine." in (kit / "README.md").read_text()


def test_the_ensemble_fits_together(kit: Path, exported: ExportReport) -> None:
    recommended = read_artifact(Path(exported.out) / exported.recommended)
    name = recommended.card.name
    decode, images, model = (config(kit, n) for n in (f"{name}_decode", f"{name}_images", model_name(recommended)))
    assert [s.model_name for s in images.ensemble_scheduling.step] == [decode.name, model.name]
    assert (decode.backend, images.platform) == ("python", "ensemble")
    assert decode.max_batch_size == images.max_batch_size == model.max_batch_size
    assert decode.input == images.input
    assert (decode.output[0].data_type, list(decode.output[0].dims)) == (
        model.input[0].data_type,
        list(model.input[0].dims),
    )
    assert [(o.name, list(o.dims)) for o in images.output] == [(o.name, list(o.dims)) for o in model.output]


def test_an_export_s_name_becomes_one_of_a_model(int8_file: Path) -> None:
    from dataclasses import replace

    card = read_artifact(int8_file).card
    assert base_name(replace(card, name="nano-my photos/été")) == "nano-my-photos-t"
    assert base_name(replace(card, name="猫")) == "model"
    for name in ("_try", "-_-", "x" * 300, "猫_2"):
        assert NAME.fullmatch(base_name(replace(card, name=name))), "the kit for Docker serves it by this name"


def pictures() -> Iterator[Image.Image]:
    rng = np.random.default_rng(0)
    for mode, bands in (("RGB", 3), ("RGBA", 4), ("L", 1), ("LA", 2)):
        for size in ((64, 64), (101, 64), (30, 47), (640, 481)):
            pixels = rng.integers(0, 256, (*size, bands), dtype=np.uint8)
            yield Image.fromarray(pixels.squeeze(), mode=None).convert(mode)
    yield Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)).quantize(16)


def test_the_readme_s_python_is_our_preprocessing(kit: Path, int8_file: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (kit / "README.md").read_text(), flags=re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    rules = read_artifact(int8_file).card.preprocessing
    count = 0
    for picture in pictures():
        for orientation in (1, 6):
            file = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = orientation
            picture.save(file, "PNG", exif=exif)
            file.seek(0)
            np.testing.assert_array_equal(names["pixels"](file), rules(file.getvalue()))
            count += 1
    assert count == 34


@pytest.fixture(scope="module")
def server(exported: ExportReport, tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    """A real tritonserver with the repository, in which the python backend stands in for ONNX Runtime's."""
    program = os.environ.get(SERVER)
    if program is None:
        pytest.skip(f"no {SERVER}: scripts/triton_oracle.sh gets a server and runs this test with it")
    place = tmp_path_factory.mktemp("server")
    models = write_kits(Path(exported.out), ["triton"], place)["triton"] / "models"
    for file in models.glob("*/1/model.onnx"):
        (file.parent / "model.py").write_text(STAND_IN)
        configuration = file.parents[1] / "config.pbtxt"
        configuration.write_text(configuration.read_text().replace('platform: "onnxruntime_onnx"', 'backend: "python"'))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false")
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([program, f"--model-repository={models}", *options], stdout=log, stderr=log)
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        wait_until_ready(client, process, place / "log")
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=START_S)


def wait_until_ready(client: triton.InferenceServerClient, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if client.is_server_ready():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready after {START_S:.0f} s\n{log.read_text()}")


@pytest.fixture(scope="module")
def name(exported: ExportReport) -> str:
    return base_name(read_artifact(Path(exported.out) / exported.recommended).card)


def ask(client: triton.InferenceServerClient, model: str, images: Any, kind: str, labels: int = 0) -> Any:
    image = triton.InferInput("image", list(images.shape), kind)
    image.set_data_from_numpy(images)
    wanted = triton.InferRequestedOutput("probabilities", class_count=labels)
    return client.infer(model, [image], outputs=[wanted]).as_numpy("probabilities")


def files() -> tuple[list[Path], Any]:
    """Return image files, and their bytes as a tensor ``[N, 1]``."""
    paths = sorted(EXAMPLES.glob("*.png"))
    return paths, np.array([[p.read_bytes()] for p in paths], np.object_)


def test_a_real_server_is_ready_with_every_model(server: triton.InferenceServerClient, name: str) -> None:
    states = {m["name"]: m["state"] for m in server.get_model_repository_index()}
    assert states == {f"{name}_{kind}": "READY" for kind in ("fp32", "int8", "decode", "images")}
    metadata = server.get_model_metadata(f"{name}_int8")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_a_real_server_gives_our_probabilities(
    server: triton.InferenceServerClient, name: str, exported: ExportReport, kind: str
) -> None:
    paths, _ = files()
    with qdeploy.load(Path(exported.out) / f"model.{kind}.onnx") as classifier:
        pixels = np.stack([classifier.card.preprocessing(p) for p in paths])
        expected = [p.probabilities for p in classifier.classify(pixels)]
    np.testing.assert_allclose(ask(server, f"{name}_{kind}", pixels, "UINT8"), expected, atol=1e-5)


def test_a_real_server_takes_files(server: triton.InferenceServerClient, name: str, exported: ExportReport) -> None:
    paths, encoded = files()
    with qdeploy.load(Path(exported.out) / exported.recommended) as classifier:
        expected = classifier([str(p) for p in paths])
    found = ask(server, f"{name}_images", encoded, "BYTES")
    np.testing.assert_allclose(found, [p.probabilities for p in expected], atol=1e-5)
    texts = ask(server, f"{name}_images", encoded, "BYTES", labels=2)
    assert texts.shape == (len(paths), 2)
    labels = [row[0].decode().split(":", 2)[2] for row in texts]
    assert labels == [p.would_be for p in expected]


def test_a_real_server_refuses_what_is_no_image(server: triton.InferenceServerClient, name: str) -> None:
    _, encoded = files()
    torn = np.concatenate([encoded[:1], np.array([[encoded[1, 0][:200]]], np.object_)])
    with pytest.raises(InferenceServerException, match=r"^\[400\] .*image 1 .*\[truncated\]"):
        ask(server, f"{name}_images", torn, "BYTES")
    assert server.is_server_live()
    assert len(ask(server, f"{name}_images", encoded[:1], "BYTES")) == 1
