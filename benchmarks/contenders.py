"""One way to classify a JPEG file with the same network, in a process of its own; `runtime_peers.py` starts these.

    python contenders.py NAME FOLDER [--once]

Needs nothing but the library it shows, so that it also runs in another environment. It prints a line when it is ready
(seconds since the interpreter started, peak memory, the first answer), then for each number read from stdin classifies
so many images and prints their times. Images are decoded from JPEG bytes in memory, as a server or a camera gives them.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()
Classify = Callable[[bytes], int]
SIZE = 64


def qdeploy_int8(folder: Path) -> Classify:
    return _qdeploy(folder / "model.int8.onnx")


def qdeploy_fp32(folder: Path) -> Classify:
    return _qdeploy(folder / "model.fp32.onnx")


def qdeploy_native(folder: Path) -> Classify:
    return _qdeploy(folder / "model.int8.onnx", engine="native")


def qdeploy_openvino(folder: Path) -> Classify:
    return _qdeploy(folder / "model.int8.onnx", engine="openvino")


def _qdeploy(file: Path, **options: Any) -> Classify:
    import qdeploy

    classifier = qdeploy.load(file, **options)
    return lambda data: classifier(data).index


def onnxruntime(folder: Path) -> Classify:
    """As most examples call it: the file's path, default options, numpy normalisation."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(folder / "nchw.onnx"))
    name = session.get_inputs()[0].name
    prepare = _numpy(folder)
    return lambda data: int(session.run(None, {name: prepare(data)})[0].argmax())


def openvino(folder: Path) -> Classify:
    """As its documentation calls it: compile, then call with an array."""
    import openvino as ov

    model = ov.Core().compile_model(str(folder / "nchw.onnx"), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    prepare = _numpy(folder)
    return lambda data: int(model(prepare(data))[0].argmax())


def _channels(folder: Path) -> tuple[list[float], list[float]]:
    rules = json.loads((folder / "run.json").read_text())["preprocessing"]
    return rules["mean"], rules["std"]


def _numpy(folder: Path) -> Callable[[bytes], Any]:
    import numpy as np
    from PIL import Image

    mean, std = (np.asarray(v, np.float32) for v in _channels(folder))

    def prepare(data: bytes) -> Any:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        values = (np.asarray(image, np.float32) / 255 - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    return prepare


def torch_eager(folder: Path) -> Classify:
    return _torch(folder, _torchvision(folder))


def torch_compile(folder: Path) -> Classify:
    return _torch(folder, _torchvision(folder), compiled=True)


def timm(folder: Path) -> Classify:
    """The transform that timm gives for inference."""
    from timm.data import create_transform

    mean, std = _channels(folder)
    transform = create_transform((3, SIZE, SIZE), interpolation="bilinear", mean=mean, std=std, crop_pct=1.0)
    return _torch(folder, transform)


def _torchvision(folder: Path) -> Callable[[Any], Any]:
    from torchvision import transforms

    normalize = transforms.Normalize(*_channels(folder))
    return transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), normalize])


def _torch(folder: Path, transform: Callable[[Any], Any], compiled: bool = False) -> Classify:
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    from qdeploy.core.run_folder import read_record
    from qdeploy.models.registry import model_from_record

    info = read_record(folder).model
    model = model_from_record(info.family, info.config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    network = torch.compile(model.eval()) if compiled else model.eval()

    def classify(data: bytes) -> int:
        with torch.inference_mode():
            return int(network(transform(Image.open(io.BytesIO(data)).convert("RGB"))[None]).argmax())

    return classify


def ultralytics(folder: Path) -> Classify:
    """Its images are in [0, 1]; unit.onnx normalises them itself."""
    from PIL import Image
    from ultralytics import YOLO

    model = YOLO(folder / "unit.onnx", task="classify")
    return lambda data: int(
        model.predict(Image.open(io.BytesIO(data)), imgsz=SIZE, device="cpu", verbose=False)[0].probs.top1
    )


CONTENDERS = {
    f.__name__: f
    for f in (
        qdeploy_int8,
        qdeploy_native,
        qdeploy_fp32,
        qdeploy_openvino,
        onnxruntime,
        openvino,
        torch_eager,
        torch_compile,
        timm,
        ultralytics,
    )
}


def peak_memory_bytes() -> int:
    """Of this process alone: ru_maxrss would be inherited from the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(name: str, folder: Path, once: bool) -> None:
    answers_to = sys.stdout
    sys.stdout = sys.stderr  # some libraries print
    images = [p.read_bytes() for p in sorted((folder / "images").glob("*.jpg"))]
    classify = CONTENDERS[name](folder)
    classify(images[0])
    ready = time.perf_counter() - BEGIN
    answers = [] if once else [classify(i) for i in images]
    line = {"ready_s": ready, "peak_bytes": peak_memory_bytes(), "answers": answers}
    print(json.dumps(line), file=answers_to, flush=True)
    for text in () if once else sys.stdin:
        times = []
        for i in range(int(text)):
            begin = time.perf_counter_ns()
            classify(images[i % len(images)])
            times.append((time.perf_counter_ns() - begin) / 1e6)
        print(json.dumps(times), file=answers_to, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), "--once" in sys.argv)
