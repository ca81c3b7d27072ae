"""Other people's ONNX files, modules and images through the commands: what came of each of them.

    python benchmarks/foreign_files.py [graphs] [modules] [images] [--every N] [--jobs N] [--rows FILE]

The corpora are those of the tests, made from a seed: ``tests/foreign``, ``tests/export/foreign_modules.py`` and
``tests/foreign_images.py``. Every command runs as the whole program does, in a process of its own, forked from this one
(which has imported torch and opened no model), so that what is judged is what a user would see:

- exit code 0, and the answers are those of an independent reference: ONNX Runtime on the file as it came, torch on the
  module, plain Pillow and numpy on the image; or
- exit code 2 and one line that begins with ``qdeploy: ``; no export is left behind.

Anything else is a fault: another exit code (1, a negative verdict, is for graphs that are made to be rejected; 70 is a
defect), a traceback, a signal, other answers. The script ends with exit code 1 if there is a fault, and writes the
counts into docs/real_exports.md. With `--rows`, rows are added to a file of JSON lines as soon as they are done, and
inputs that are in it are not judged again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the corpora are the tests'
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime as ort
import real_exports
import torch
from machine import keep
from numpy.typing import NDArray
from PIL import Image

import qdeploy.checks.diff
import qdeploy.checks.evaluate
import qdeploy.export.lint.report  # noqa: F401 - imported once, before the forks
from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import QdeployError
from qdeploy.core.image import decode
from qdeploy.core.metrics import sqnr_db
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.export import ExportConfig, export_module
from qdeploy.runtime.classifier import load
from tests.export.foreign_modules import CLASSES, MODULES, made
from tests.export.foreign_modules import SIZE as MODULE_SIZE
from tests.foreign import foreign_graphs
from tests.foreign.build import SIZE, Foreign, pixels
from tests.foreign_images import ForeignImage, foreign_images
from tests.forked import Ended, command, forked

T = TypeVar("T")
QUICK = ("--calibration", "minmax", "--allow-slower", "--allow-drop", "--search-seconds", "1")
CLASS_NAMES = ("apple", "berry", "melon")
LEAST_DB = 15.0
"""Of an INT8 file against its float file; the random graphs reach 19 to 60, and the product itself rejects below 10."""
RELATIVE = 1e-4
"""Largest difference of a float file from what it was made from, as a share of the largest logit."""
PER_CLASS = 24


def judged_graph(graph: Foreign, folder: Path) -> dict[str, Any]:
    """Send a graph through the commands."""
    file = graph.write(folder)
    faults = []
    quantized = command(folder, "quantize", file.name, "--data", "../images", "--out", "export", *QUICK)
    rejected = graph.expected == "rejected"  # INT8 of it is no good, and the verdict says so
    if not (rejected and quantized.code == 1):
        faults.append(quantized.fault)
    taken = quantized.code == 0
    outcome = {0: "taken", 1: "rejected", 2: "refused"}.get(quantized.code, "ended")
    if outcome != graph.expected and not (outcome == "refused" and not graph.layers):
        faults.append(f"it was to be {graph.expected}, and is {outcome}: {quantized.refusal}")
    if taken:
        faults += answers_of_export(file, folder, max(RELATIVE, graph.rounding))
    elif outcome == "refused" and (folder / "export").exists():
        faults.append("refused, and an export is there")
    adopted = command(folder, "adopt", file.name, "--data", "../images", "--out", "adopted")
    faults.append(f"adopt: {adopted.fault}" if adopted.fault else "")
    if (adopted.code == 0) != (taken or rejected or not graph.layers):
        faults.append(f"adopt: exit code {adopted.code}, quantize: {quantized.code}: {adopted.refusal}")
    then = [("lint", file.name), ("eval", file.name, "../images"), ("diff", file.name, file.name)]
    then += [("inspect", file.name), ("predict", "--model", file.name, "../images/apple/0.png")]
    if taken:
        files = ["export/model.fp32.onnx", "export/model.int8.onnx"]
        then += [("inspect", files[1]), ("eval", files[1], "../images"), ("diff", *files)]
    for words in then:
        ended = command(folder, *words)
        faults += [f"{words[0]}: {ended.fault}" if ended.fault else ""]
        has_card = any(word.startswith("export/") for word in words)
        if words[0] != "lint" and ended.code != (0 if has_card else 2):
            faults.append(f"{words[0]}: exit code {ended.code} {ended.refusal}")
    return row("graph", f"{graph.kind}: {graph.name}", quantized, faults)


def answers_of_export(file: Path, folder: Path, most: float) -> list[str]:
    """Compare an export with the file as it came, which ONNX Runtime runs image by image; they may differ so much."""

    def compare() -> int:
        images = pixels()
        artifact = read_artifact(folder / "export" / "model.fp32.onnx")
        rules = artifact.card.preprocessing
        values = (images.astype(np.float32) / 255 - np.float32(rules.mean)) / np.float32(rules.std)
        session = ort.InferenceSession(_with_names(file), providers=["CPUExecutionProvider"])
        wide = np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)
        name = session.get_inputs()[0].name
        theirs = np.concatenate([session.run(None, {name: wide[i : i + 1]})[0] for i in range(len(wide))])
        float_, int8 = (load(folder / "export" / f"model.{p}.onnx").session.infer(images)[0] for p in ("fp32", "int8"))
        differs = float(np.abs(float_ - theirs).max() / max(1.0, float(np.abs(theirs).max())))
        print(json.dumps({"relative": differs, "db": float(min(999.0, sqnr_db(float_, int8)))}))
        return 0

    ended = forked(compare, folder)
    if ended.code:
        return [f"comparison: {ended.err[-300:]}"]
    found = json.loads(ended.out)
    wrong = [] if found["relative"] <= most else [f"float differs by {found['relative']:.1e}"]
    return wrong + ([] if found["db"] >= LEAST_DB else [f"INT8 agrees to {found['db']:.1f} dB only"])


def _with_names(file: Path) -> Any:
    """Return a file whose nodes have no names: ONNX Runtime wants names that differ, ONNX does not."""
    import onnx

    model = onnx.load(file)
    for node in model.graph.node:
        node.name = ""
    return model.SerializeToString()


def judged_module(name: str, folder: Path) -> dict[str, Any]:
    """Export a module, and compare the file with it."""
    case = MODULES[name]
    rules = Preprocessing(size=MODULE_SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def work() -> int:
        data = load_dataset("../module_images", rules)
        config = ExportConfig(int8=True, calibration="minmax", allow_drop=True, allow_slower=True)
        try:
            export_module(made(name), data.classes, rules, data, folder / "export", config=config)
        except QdeployError as error:
            print(f"qdeploy: {error}", file=sys.stderr)
            return error.exit_code
        images = data.splits["test"].pixels
        module = made(name)
        module = module.eval() if isinstance(module, torch.jit.ScriptModule) else module.eval().float()
        with torch.no_grad():
            answer = module((torch.from_numpy(np.array(images)).float() / 255).permute(0, 3, 1, 2).contiguous())
        answer = answer["logits"] if isinstance(answer, dict) else answer
        theirs = (answer if isinstance(answer, torch.Tensor) else answer[0]).double().numpy()
        ours = load(folder / "export" / "model.fp32.onnx").session.infer(images)[0]
        print(json.dumps({"relative": float(np.abs(ours - theirs).max() / np.abs(theirs).max())}))
        return 0

    ended = forked(work, folder)
    faults = [ended.fault]
    if (ended.code == 0) == bool(case.refused):
        faults.append(f"it was to be {'refused' if case.refused else 'taken'}: {ended.refusal}")
    if ended.code == 0 and (found := json.loads(ended.out.splitlines()[-1])["relative"]) > 1e-2:
        faults.append(f"float differs by {found:.1e}")
    if ended.code and (folder / "export").exists():
        faults.append("refused, and an export is there")
    return row("module", name, ended, faults)


def judged_image(image: ForeignImage, folder: Path) -> dict[str, Any]:
    """Classify an image by the command line, and compare its pixels with the reference."""
    (folder / image.name).write_bytes(image.data)
    ended = command(folder, "predict", "--json", "--", image.name)
    faults = [f"exit code {ended.code}: {ended.err[-300:]}"] if ended.broken else []
    answers = [json.loads(line) for line in ended.out.splitlines()]
    reason = answers[0].get("error", "") if answers else ended.refusal
    if bool(reason) != (image.pixels is None):
        faults.append(f"it was to be {'refused' if image.pixels is None else 'taken'}: {reason}")
    elif image.pixels is not None:
        found = np.asarray(decode(image.data, (255, 255, 255)), np.int16)
        if found.shape != image.pixels.shape or np.abs(found - image.pixels).max() > 1:
            faults.append("other pixels than the reference")
    return row("image", image.name, Ended(2 if reason else 0, "", f"qdeploy: {reason}" if reason else ""), faults)


def row(kind: str, name: str, ended: Ended, faults: Sequence[str]) -> dict[str, Any]:
    """Return what is recorded of one input."""
    found = [fault for fault in faults if fault]
    outcome = "fault" if found else {0: "taken", 1: "rejected"}.get(ended.code, "refused")
    return {"kind": kind, "name": name, "outcome": outcome, "says": ended.refusal[len("qdeploy: ") :], "faults": found}


def without_details(text: str) -> str:
    """Return a refusal without the names and numbers of its case, for counting."""
    text = re.sub(r"'[^']*'|\[[^\]]*\]|\S+\.(onnx|data|png|jpg)\b|\S*/\S*", "_", text)
    return re.sub(r"\d+(\.\d+)?", "N", text)[:100]


def each(
    items: Sequence[T], judge: Callable[[T, Path], dict[str, Any]], root: Path, jobs: int
) -> Iterator[dict[str, Any]]:
    """Judge each item, some at a time, and tell of faults at once."""
    if not items:
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        for i, found in enumerate(pool.map(partial(alone, judge, root), items)):
            for fault in found["faults"]:
                print(f"FAULT {found['kind']} {found['name']}: {fault}", flush=True)
            if i % 25 == 24:
                print(f"{i + 1} of {len(items)} done", flush=True)
            yield found


def alone(judge: Callable[[T, Path], dict[str, Any]], root: Path, item: T) -> dict[str, Any]:
    """Judge an item in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        return judge(item, Path(folder))


def write_folder(folder: Path, images: NDArray[np.uint8]) -> None:
    """Write a data set of three classes."""
    for i, image in enumerate(images):
        place = folder / CLASS_NAMES[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i // 3}.png")


def rows_done(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, and cut off what an interruption has left of a last one."""
    text = path.read_bytes()
    end = text.rfind(b"\n") + 1
    if end < len(text):
        os.truncate(path, end)
    return [json.loads(line) for line in text[:end].splitlines()]


def main() -> int:
    """Judge the corpora that are named, and keep the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", choices=[[], "graphs", "modules", "images"], metavar="CORPUS")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="judge every Nth input, keep nothing")
    parser.add_argument("--rows", type=Path, help="file of rows that are done, continued")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="judge N at a time")
    given = parser.parse_args()
    wanted = given.corpora or ["graphs", "modules", "images"]
    begin, continued = time.monotonic(), False
    rows: list[dict[str, Any]] = []
    if given.rows and given.rows.exists():
        rows, continued = rows_done(given.rows), True
    corpora: dict[str, tuple[Iterable[Any], Callable[[Any], str], Callable[[Any, Path], dict[str, Any]]]] = {
        "graph": (foreign_graphs(), lambda g: f"{g.kind}: {g.name}", judged_graph),
        "module": (MODULES, str, judged_module),
        "image": (foreign_images(), lambda i: i.name, judged_image),
    }
    with tempfile.TemporaryDirectory(prefix="foreign-") as name:
        root = Path(name)
        os.environ["QDEPLOY_CACHE"] = str(root / "cache")
        write_folder(root / "images", pixels(3 * PER_CLASS))
        write_folder(root / "module_images", pixels(3 * PER_CLASS, size=MODULE_SIZE))
        for kind, (items, name_of, judge) in corpora.items():
            known = {r["name"] for r in rows if r["kind"] == kind}
            new = [item for item in list(items)[:: given.every] if name_of(item) not in known]
            for found in each(new, judge, root, given.jobs) if f"{kind}s" in wanted else ():
                rows.append(found)
                if given.rows:
                    with given.rows.open("a") as file:
                        file.write(f"{json.dumps(found)}\n")
    counts = {
        kind: dict(Counter(r["outcome"] for r in rows if r["kind"] == kind)) for kind in ("graph", "module", "image")
    }
    reasons = Counter(without_details(r["says"]) for r in rows if r["outcome"] == "refused")
    seconds = round(time.monotonic() - begin)
    print(json.dumps(counts))
    if given.every == 1 and not given.corpora:
        refusals = dict(reasons.most_common())
        keep("foreign_files", rows, counts=counts, refusals=refusals, seconds=None if continued else seconds)
        real_exports.write()
    return int(any(r["faults"] for r in rows))


if __name__ == "__main__":
    assert len(CLASS_NAMES) == CLASSES
    assert SIZE < MODULE_SIZE
    sys.exit(main())
