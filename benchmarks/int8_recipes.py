"""INT8 recipes of other tools and ours, and their calibrations alone, each run in a fresh process by int8_peers.py."""

from __future__ import annotations

import qdeploy  # noqa: F401  # isort: skip  # first: it switches off the usage events of onnxruntime

import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.registry import QDQRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from qdeploy.core.artifact import read_artifact
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.core.metrics import Floats
from qdeploy.data.catalog import load_dataset

EVALUATED_TOGETHER = 50
ULTRALYTICS_BATCH = 16
NNCF_MAX_DROP = 0.003
"""Share of right answers that its accuracy control may spend."""
MAX_DROP = 1.0
"""Points of top-1 that our guard may spend."""

Pixels = NDArray[np.uint8]
Facts = dict[str, Any]
Timed = Callable[[], Facts]
Prepare = Callable[["Job"], Timed]


class Plain:
    """A session of any file, of one thread, with the method that the timing calls."""

    def __init__(self, model: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def infer(self, images_BSSC: Pixels) -> tuple[Floats, Floats]:
        logits, probabilities = self._session.run(["logits", "probabilities"], {"image": images_BSSC})
        return logits, probabilities


def logits_of(session: Plain, pixels: Pixels) -> Floats:
    parts = range(0, len(pixels), EVALUATED_TOGETHER)
    return np.concatenate([session.infer(pixels[i : i + EVALUATED_TOGETHER])[0] for i in parts])


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a fresh process is asked to do."""

    recipe: str
    source: str
    """The float graph."""
    folder: str
    """Where images.npz is, and where files may be written."""

    @property
    def result(self) -> str:
        """The INT8 file to make."""
        return str(Path(self.folder) / "int8.onnx")

    def images(self, name: str = "images") -> NDArray[Any]:
        """Give ``images`` to calibrate with, or ``val_images`` and ``val_labels``."""
        with np.load(Path(self.folder) / "images.npz", allow_pickle=False) as arrays:
            found: NDArray[Any] = arrays[name]
        return found


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to INT8."""

    words: str
    prepare: Prepare
    """Imports and reads what is needed, and gives what is timed."""
    package: str = "onnxruntime"
    """What must be installed."""


class Reader:
    """Images in the form that ONNX Runtime's calibrators read."""

    def __init__(self, pixels: Pixels, batch: int = 1) -> None:
        self._batches = iter([pixels[i : i + batch] for i in range(0, len(pixels), batch)])

    def get_next(self) -> dict[str, Pixels] | None:
        found = next(self._batches, None)
        return None if found is None else {"image": found}


def static(preprocess: bool = True, batch: int = 1, only: Sequence[str] = (), **options: Any) -> Prepare:
    """``quantize_static``; with ``only``, all other operators are excluded by the names of their nodes."""

    def prepare(job: Job) -> Timed:
        if preprocess:
            importlib.import_module("onnxruntime.tools.symbolic_shape_infer")  # it imports sympy and torch, if there
        pixels = job.images()

        def work() -> Facts:
            source = job.source
            if preprocess:
                source = str(Path(job.folder) / "preprocessed.onnx")
                quant_pre_process(job.source, source)
            others = [n.name for n in onnx.load(source).graph.node if n.op_type not in only] if only else None
            quantize_static(source, job.result, Reader(pixels, batch), nodes_to_exclude=others, **options)
            return {}

        return work

    return prepare


def nncf(per_tensor: bool = True, accuracy_control: bool = False) -> Prepare:
    """NNCF's post-training quantization of an ONNX graph, without or with its search for what stays in float."""

    def prepare(job: Job) -> Timed:
        os.environ["NNCF_CI"] = "1"  # no telemetry
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

        graph, pixels = onnx.load(job.source), job.images()
        val, labels = job.images("val_images"), job.images("val_labels")
        data = nncf.Dataset([{"image": pixels[i : i + 1]} for i in range(len(pixels))])
        judged = nncf.Dataset([(val[i : i + 1], labels[i]) for i in range(len(val))])
        activations = QuantizationParameters(per_channel=False) if per_tensor else None
        advanced = AdvancedQuantizationParameters(activations_quantization_params=activations)
        calls = []

        def top1(model: onnx.ModelProto, items: Iterable[tuple[Pixels, int]]) -> tuple[float, list[float]]:
            session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            right = [float(session.run(["logits"], {"image": x})[0].argmax() == label) for x, label in items]
            calls.append(len(right))
            return sum(right) / len(right), right  # without the list it opens and runs the model for each image

        def work() -> Facts:
            if accuracy_control:
                made = nncf.quantize_with_accuracy_control(
                    graph,
                    data,
                    judged,
                    top1,
                    max_drop=NNCF_MAX_DROP,
                    subset_size=len(pixels),
                    advanced_quantization_parameters=advanced,
                )
            else:
                made = nncf.quantize(graph, data, subset_size=len(pixels), advanced_parameters=advanced)
            onnx.save(made, job.result)
            whole = sum(n == len(val) for n in calls)
            return {"validations": whole, "validations_in_part": len(calls) - whole} if accuracy_control else {}

        return work

    return prepare


def ours(job: Job) -> Timed:
    """The INT8 step of ``qdeploy export --int8``, with its defaults but for the number of images."""
    from qdeploy.core.progress import no_progress, silent
    from qdeploy.export.config import ExportConfig
    from qdeploy.export.finish import Work, finish
    from qdeploy.export.int8.step import int8_step
    from qdeploy.export.pipeline import PARITY_IMAGES
    from qdeploy.export.stress import StressSet

    artifact = read_artifact(Path(job.source))
    config = ExportConfig(int8=True, calibration_images=len(job.images()), max_drop=MAX_DROP)
    dataset = load_dataset(preprocessing=artifact.card.preprocessing)
    work = Work(
        dataset=dataset,
        name=artifact.card.name,
        config=config,
        note=silent,
        progress=no_progress,
        parity_pixels=dataset.splits["val"].pixels[:PARITY_IMAGES],
    )
    graph, card = onnx.load_from_string(artifact.data), artifact.card
    reference = logits_of(Plain(artifact.data), work.parity_pixels)
    fp32 = finish(work, graph, card, reference, "model.fp32.onnx", card.goldens.min_sqnr_db)

    def step() -> Facts:
        (made, *_), _ = int8_step(work, fp32, StressSet.of(fp32.session, work.parity_pixels))
        Path(job.result).write_bytes(made.made.data)
        return {
            "method": made.report.calibration,
            "float_units": list(made.report.float_units),
            "choices": len(made.report.units) + len(made.report.choices),
        }

    return step


U8S8: dict[str, Any] = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
S8S8 = {**U8S8, "activation_type": QuantType.QInt8}
RECIPES = {
    "ort-defaults": Recipe(words="ORT quantize_static, defaults", prepare=static(preprocess=False)),
    "ort-docs": Recipe(words="ORT as its docs recommend: preprocess, S8S8, per channel", prepare=static(**S8S8)),
    "ort-u8s8": Recipe(words="ORT preprocess, U8S8, per channel", prepare=static(**U8S8)),
    "ort-percentile": Recipe(
        words="ORT preprocess, U8S8, per channel, Percentile",
        prepare=static(calibrate_method=CalibrationMethod.Percentile, **U8S8),
    ),
    "ort-entropy": Recipe(
        words="ORT preprocess, U8S8, per channel, Entropy",
        prepare=static(calibrate_method=CalibrationMethod.Entropy, **U8S8),
    ),
    "ultralytics": Recipe(
        words="Ultralytics' recipe: ORT defaults, Conv/Gemm/MatMul only",
        prepare=static(preprocess=False, batch=ULTRALYTICS_BATCH, only=("Conv", "Gemm", "MatMul")),
    ),
    "optimum": Recipe(
        words="Optimum avx512_vnni, static (re-created)",
        prepare=static(
            preprocess=False,
            op_types_to_quantize=list(QDQRegistry),
            extra_options={"QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
            **U8S8,
        ),
    ),
    "nncf-defaults": Recipe(words="NNCF quantize, ONNX, defaults", prepare=nncf(per_tensor=False), package="nncf"),
    "nncf": Recipe(words="NNCF quantize, ONNX, activations per tensor", prepare=nncf(), package="nncf"),
    "nncf-control": Recipe(
        words=f"NNCF accuracy control, max_drop {NNCF_MAX_DROP}", prepare=nncf(accuracy_control=True), package="nncf"
    ),
    "qdeploy": Recipe(words="qdeploy export --int8", prepare=ours),
}


def ort_calibration(method: str) -> Prepare:
    """One of ONNX Runtime's calibrators, over all tensors: it collects and then computes the ranges."""

    def prepare(job: Job) -> Timed:
        pixels = job.images()

        def work() -> Facts:
            augmented = str(Path(job.folder) / "augmented.onnx")
            calibrator = create_calibrator(
                job.source, augmented_model_path=augmented, calibrate_method=CalibrationMethod[method]
            )
            calibrator.collect_data(Reader(pixels))
            return {"tensors": len(calibrator.compute_data().data)}

        return work

    return prepare


def our_calibration(job: Job) -> Timed:
    """One pass over the images, and then the ranges of every method."""
    from qdeploy.export.int8.calibrate import calibrate, choose_images
    from qdeploy.export.int8.ranges import METHODS

    artifact = read_artifact(Path(job.source))
    graph = onnx.load_from_string(artifact.data)
    images = choose_images(load_dataset(preprocessing=artifact.card.preprocessing), len(job.images()), 0)

    def work() -> Facts:
        begin = time.perf_counter()
        calibration = calibrate(graph, images, 0)
        seconds = time.perf_counter() - begin
        tensors = [len(calibration.ranges(method)) for method in (*METHODS, "mixed")]
        return {"tensors": tensors[0], "of_these_for_histograms_s": round(seconds, 2), "methods": len(tensors)}

    return work


CALIBRATIONS = {
    "calibrate-minmax": Recipe(words="ORT MinMax", prepare=ort_calibration("MinMax")),
    "calibrate-percentile": Recipe(words="ORT Percentile", prepare=ort_calibration("Percentile")),
    "calibrate-entropy": Recipe(words="ORT Entropy", prepare=ort_calibration("Entropy")),
    "calibrate-qdeploy": Recipe(words="qdeploy, the ranges of every method", prepare=our_calibration),
}


def child(job: Job) -> None:
    """Do one job, and print what it took as the last line."""
    recipe = {**RECIPES, **CALIBRATIONS}[job.recipe]
    work = recipe.prepare(job)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: what the imports needed for a moment is forgotten
    before, begin = peak_memory_bytes(), time.perf_counter()
    facts = work()
    seconds = time.perf_counter() - begin
    peak = peak_memory_bytes()
    told = {"seconds": round(seconds, 2), "before_MB": round(before / 1e6, 1), "peak_MB": round(peak / 1e6, 1)}
    print(json.dumps({**told, **facts}))


def fresh(recipe: str, source: Path, folder: Path) -> Facts:
    """Do a job in a fresh process; its cache is empty. What fails gives a note."""
    wanted = {**RECIPES, **CALIBRATIONS}[recipe].package
    if importlib.util.find_spec(wanted) is None:
        return {"note": f"not installed: pip install {wanted}"}
    job = Job(recipe=recipe, source=str(source), folder=str(folder))
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "QDEPLOY_CACHE": cache}
        command = [sys.executable, __file__, json.dumps(asdict(job))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        return {"note": f"failed: {last_line(done.stderr)}"}
    return dict(json.loads(last_line(done.stdout)))


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


if __name__ == "__main__":
    child(Job(**json.loads(sys.argv[1])))
