"""A model repository for NVIDIA's Triton Inference Server: every file of an export, and images decoded by our rules.

A file becomes a model of its own. Two more take encoded images: a model of the python backend that decodes them with
qdeploy, and an ensemble of it and the recommended file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from qdeploy.core.artifact import Artifact
from qdeploy.core.card import Card
from qdeploy.core.engine_file import unpack
from qdeploy.core.files import write_bytes, write_json
from qdeploy.export.kits.folder import filled

TEMPLATES = Path(__file__).parent / "triton_files"
MAX_BATCH = 64
LABELS = "labels.txt"


def write_triton_kit(folder: Path, artifacts: Sequence[Artifact], recommended: str) -> None:
    """Write a repository of every file that Triton can run."""
    able = [a for a in artifacts if a.engine is None or a.engine.builder == "tensorrt"]
    models = folder / "models"
    models.mkdir()
    for artifact in able:
        write_model(models, artifact)
    first = next(a for a in able if a.path.name == recommended)
    _write_images(models, first)
    rows = (f"| `{model_name(a)}` | `{a.path.name}`: {a.card.precision}, {_where(a)} |" for a in able)
    left_out = [a.path.name for a in artifacts if a not in able]
    words = {
        **words_of(first.card),
        "name": base_name(first.card),
        "recommended": model_name(first),
        "models": "\n".join(rows),
        "left_out": f"Not here, because Triton has no backend for it: {', '.join(left_out)}.\n\n" if left_out else "",
    }
    write_bytes(folder / "README.md", filled(TEMPLATES / "README.md.in", words))


def write_model(models: Path, artifact: Artifact) -> None:
    """Write one file as a model of a repository."""
    name = model_name(artifact)
    (models / name / "1").mkdir(parents=True)
    if artifact.engine is None:
        write_bytes(models / name / "1" / "model.onnx", artifact.data)
    else:
        write_bytes(models / name / "1" / "model.plan", unpack(artifact.data)[1])
    write_bytes(models / name / LABELS, _lines(artifact.card.labels))
    write_bytes(models / name / "config.pbtxt", model_config(artifact).encode())


def base_name(card: Card) -> str:
    """Return the export's name as far as the name of a model may be it, for Triton and for ``qdeploy serve``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", card.name).strip("-_")[:128] or "model"


def model_name(artifact: Artifact) -> str:
    """Return the name of a file's model: the export's with the file's kind, ``nano-flowers_int8``."""
    kind = artifact.path.stem.removeprefix("model.").replace(".", "_")
    return f"{base_name(artifact.card)}_{kind}"


def model_config(artifact: Artifact) -> str:
    """Return the ``config.pbtxt`` of a file's model."""
    card, engine = artifact.card, artifact.engine
    size = card.preprocessing.size
    most = engine.max_batch if engine else MAX_BATCH
    return filled(
        TEMPLATES / "model.pbtxt.in",
        {
            "name": model_name(artifact),
            "platform": "tensorrt_plan" if engine else "onnxruntime_onnx",
            "max_batch": most,
            "size": size,
            "outputs": _outputs(card),
            "kind": _kind(artifact),
            "preferred": f" preferred_batch_size: [ {engine.opt_batch} ] " if engine else "",
            "threads": ONE_THREAD if _kind(artifact) == "KIND_CPU" else "",
            "warmups": "\n".join(_warmup(batch, size) for batch in sorted({engine.min_batch if engine else 1, most})),
        },
    ).decode()


def words_of(card: Card) -> dict[str, object]:
    """Return what a text says about preprocessing and labels."""
    rules = card.preprocessing
    return {
        "size": rules.size,
        "classes": len(card.labels),
        "background": rules.background,
        "interpolation": rules.interpolation,
        "filter": rules.interpolation.upper(),
    }


ONE_THREAD = """
# small models are fastest on one thread; more throughput comes from more instances
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
"""


def _write_images(models: Path, recommended: Artifact) -> None:
    """Write the model that decodes images, and the ensemble that begins with it."""
    card = recommended.card
    decode, images = f"{base_name(card)}_decode", f"{base_name(card)}_images"
    words = {
        "decode": decode,
        "images": images,
        "model": model_name(recommended),
        "max_batch": recommended.engine.max_batch if recommended.engine else MAX_BATCH,
        "size": card.preprocessing.size,
        "outputs": _outputs(card),
    }
    for name in (decode, images):
        (models / name / "1").mkdir(parents=True)
        template = TEMPLATES / ("decode.pbtxt.in" if name == decode else "images.pbtxt.in")
        write_bytes(models / name / "config.pbtxt", filled(template, words))
    write_bytes(models / decode / "1" / "model.py", (TEMPLATES / "decode.py").read_bytes())
    write_json(models / decode / "1" / "preprocessing.json", card.preprocessing.to_dict())
    write_bytes(models / images / LABELS, _lines(card.labels))
    write_bytes(models / images / "1" / ".keep", b"")  # a version is a folder, and some copies leave out empty ones


def _outputs(card: Card) -> str:
    rows = (
        f'  {{ name: "{name}" data_type: TYPE_FP32 dims: [ {len(card.labels)} ] label_filename: "{LABELS}" }}'
        for name in ("logits", "probabilities")
    )
    return ",\n".join(rows)


def _warmup(batch: int, size: int) -> str:
    return f"""model_warmup {{
  name: "{batch} images"
  batch_size: {batch}
  count: 3
  inputs {{ key: "image" value {{ data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] random_data: true }} }}
}}"""


def _kind(artifact: Artifact) -> str:
    """Return where a model runs: plans on GPUs, INT8 made for a CPU there, floats on a GPU if there is one."""
    if artifact.engine:
        return "KIND_GPU"
    return "KIND_CPU" if artifact.card.precision == "int8" else "KIND_AUTO"


def _where(artifact: Artifact) -> str:
    engine = artifact.engine
    if engine:
        return f"TensorRT {engine.builder_version}, GPUs of compute capability {', '.join(engine.compute_capabilities)}"
    return "ONNX Runtime on CPUs" if _kind(artifact) == "KIND_CPU" else "ONNX Runtime on a GPU, else on CPUs"


def _lines(labels: Iterable[str]) -> bytes:
    """Return labels as lines: one that has a line end in it would shift all after it."""
    return "".join(f"{' '.join(label.splitlines())}\n" for label in labels).encode()
