"""A static folder whose page classifies in the browser that opens it: no server computes, no image leaves the device.

The page is in ``web_page/`` as it is served; what depends on the models is in ``kit.json`` and the cards.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from qdeploy.core.artifact import Artifact
from qdeploy.core.errors import InputError
from qdeploy.core.files import write_bytes, write_json
from qdeploy.core.image import MAX_PIXELS, MAX_SIDE
from qdeploy.core.image_formats import MAX_FILE_BYTES
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.kits.web_runtime import web_runtime

PAGE = Path(__file__).parent / "web_page"
SCRIPT = "onnxruntime-web.js"
"""Not ``.mjs``: some hosts do not know that as a script, and browsers run none of another type."""
WASM = "onnxruntime-web.wasm.gz"
"""4 MB instead of 14: the page unpacks it, as plain hosts do not compress."""


def write_web_kit(folder: Path, artifacts: Sequence[Artifact], recommended: str) -> None:
    """Write the kit's files: fp32 and INT8 files; the page opens the recommended one if browsers run it well.

    Raises:
        InputError: If no file can be run in a browser.
        MissingDependencyError: If ONNX Runtime for browsers is not there and cannot be fetched.
    """
    models = [a for a in artifacts if a.engine is None and a.card.precision in ("fp32", "int8")]
    if not models:
        raise InputError("a browser runs fp32 and INT8 ONNX files, and this export has none")
    runtime = web_runtime()
    for file in PAGE.iterdir():
        write_bytes(folder / file.name, file.read_bytes())
    write_bytes(folder / SCRIPT, runtime.script)
    write_bytes(folder / WASM, gzip.compress(runtime.wasm, 6, mtime=0))
    entries = []
    for model in models:
        name = Path(model.path.name)
        card = name.with_suffix(".card.json")
        write_bytes(folder / name, model.data)
        write_json(folder / card, model.card.to_dict())
        size = len(model.data)
        entries.append({"file": name.name, "card": card.name, "sha256": model.sha256, "size_bytes": size})
    kit = {
        "runtime": runtime.version,
        "recommended": recommended_in_browsers(models, recommended),
        "limits": {"bytes": MAX_FILE_BYTES, "pixels": MAX_PIXELS, "side": MAX_SIDE},
        "models": entries,
    }
    write_json(folder / "kit.json", kit)


def recommended_in_browsers(models: Sequence[Artifact], recommended: str) -> str:
    """Choose the file that the page opens first.

    WebAssembly has fast kernels for uint8 activations only; with int8 ones, as ``arm`` and ``tensorrt`` have them, a
    nano took 2.4 ms an image, as fp32 1.9 to 2.1, and as ``x86`` 1.3.
    """
    quick = [a for a in models if a.card.precision == "fp32" or not encoding_for(a.card.target).signed]
    order = sorted(quick or models, key=lambda a: (a.path.name != recommended, a.card.precision == "fp32"))
    return order[0].path.name
