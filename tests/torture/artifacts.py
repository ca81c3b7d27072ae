"""Files that somebody changed: model files, their cards sealed again, graphs, headers of engines, records, folders.

Each is given to the commands that read it. It is refused in one line with exit code 2, or it is used and the answer is
the one of the sound file; nothing else. A batch of files has a process of its own with a limit on its memory, so that
one that ends it is found, and does not end the campaign.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qdeploy.cli.main import run
from qdeploy.core.artifact import CARD_KEY, CHECKSUM_KEY, SHIPPED, read_artifact, sealed
from qdeploy.core.engine_file import pack
from qdeploy.core.onnx_bytes import metadata_entries
from tests.core.test_hostile_cards import VALUES, places, put
from tests.forked import forked
from tests.resealed import engine_header, reseal
from tests.serve.test_fuzz import bent
from tests.torture import folders
from tests.torture.report import Report

IMAGE = Path(__file__).parents[2] / "examples" / "bag.png"
MODEL = SHIPPED / "model.int8.onnx"
BATCH = 40
MEMORY = 2 << 30
"""How much more address space a batch may take than there was at its beginning."""
UNSHOWN = ("labels", "preprocessing")
"""What of a card decides what an answer is: where it is changed and taken, another answer is right."""

Made = tuple[str, list[str]]
"""What was changed, and the words of the command that reads it."""
Maker = Callable[[Path, random.Random], Made]


def answer(words: list[str]) -> tuple[int, str, str]:
    """Run a command in this process; gives exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    return code, out.getvalue(), err.getvalue()


def judged(made: Made, sound: dict[str, Any]) -> tuple[str, str]:
    """Run a command on a changed file; gives what came of it, and what is wrong with that."""
    what, words = made
    begin = time.monotonic()
    code, out, err = answer(words)
    seconds = time.process_time()
    lines = [line for line in err.splitlines() if line.startswith("qdeploy: ")]
    if (
        code not in ((0, 1, 2) if words[0] == "verify" else (0, 2))
        or "Traceback" in err
        or (code == 2 and len(lines) != 1)
    ):
        return "broken", f"{what}: {words[0]} ends with exit code {code}: {err[-300:]}"
    if time.monotonic() - begin > 30 and time.process_time() - seconds > 10:
        return "slow", f"{what}: {words[0]} takes {time.monotonic() - begin:.0f} s"
    if code:
        return "refused", ""
    if words[0] != "predict" or what.startswith(UNSHOWN):
        return "taken", ""
    best = json.loads(out)["predictions"][0]
    if best["label"] != sound["label"] or abs(best["probability"] - sound["probability"]) > 0.05:
        return "wrong", f"{what}: it is taken and answers {best}, not {sound}"
    return "taken", ""


def commands(file: Path, dice: random.Random) -> list[str]:
    """Choose a command that reads a model file."""
    return dice.choice(
        [
            ["predict", "--json", "--model", str(file), str(IMAGE)],
            ["predict", "--json", "--model", str(file), str(IMAGE)],
            ["inspect", str(file)],
            ["inspect", "--json", str(file)],
        ]
    )


def damaged_file(folder: Path, dice: random.Random) -> Made:
    """Bytes changed anywhere; the checksum tells."""
    file = folder / "model.onnx"
    sound = dice.choice([MODEL, SHIPPED / "model.fp32.onnx"]).read_bytes()
    data = bent(sound, dice)
    while data == sound:
        data = bent(sound, dice)
    file.write_bytes(data)
    return "bytes", commands(file, dice)


def changed_card(folder: Path, dice: random.Random) -> Made:
    """One value of a card replaced by any other, sealed again."""
    found: list[tuple[str | int, ...]] = []

    def change(card: dict[str, Any]) -> None:
        found.append(dice.choice(list(places(card))))
        put(card, found[0], dice.choice(VALUES))

    file = reseal(MODEL, folder / "model.onnx", change)
    return ".".join(map(str, found[0])), commands(file, dice)


def changed_graph(folder: Path, dice: random.Random) -> Made:
    """Bytes of graph and weights changed, sealed again."""
    file, sound = folder / "model.onnx", MODEL.read_bytes()
    graph = sound[: min(e.start for e in metadata_entries(sound) if e.key in (CARD_KEY, CHECKSUM_KEY))]
    data = sound.replace(graph, _changed_bytes(graph, dice)) if dice.random() < 0.7 else sound
    if data == sound:
        data = _changed_structure(sound, dice)
    try:
        file.write_bytes(sealed(data))
    except (StopIteration, IndexError, ValueError, UnicodeDecodeError):  # no checksum is found any more
        file.write_bytes(data)
    return "graph", commands(file, dice)


def _changed_bytes(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 3, 20])):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def _changed_structure(sound: bytes, dice: random.Random) -> bytes:
    """Change a graph as somebody would who knows ONNX: other operators, attributes, inputs, types and shapes."""
    import onnx

    model = onnx.load_model_from_string(sound)
    graph = model.graph
    node = dice.choice(graph.node)
    kind = dice.randrange(6)
    if kind == 0:
        node.op_type = dice.choice(["Relu", "Loop", "If", "Scan", "Expand", "Conv", "Resize", "MatMul", "None"])
    elif kind == 1 and node.attribute:
        chosen = dice.choice(node.attribute)
        chosen.i = dice.choice([0, -1, 2**31, 2**63 - 1])
        chosen.ints.extend([dice.choice([0, -1, 2**40])])
    elif kind == 2 and node.input:
        node.input[dice.randrange(len(node.input))] = dice.choice(["", "none", node.output[0], graph.input[0].name])
    elif kind == 3:
        tensor = dice.choice(graph.initializer)
        tensor.dims[:] = [dice.choice([0, -1, 2**40, 7]) for _ in range(dice.randrange(4))]
    elif kind == 4:
        tensor = dice.choice(graph.initializer)
        tensor.data_type = dice.randrange(25)
    else:
        graph.input[0].type.tensor_type.shape.dim.add().dim_value = dice.choice([-1, 0, 2**40])
    data: bytes = model.SerializeToString()
    return data


def changed_engine(folder: Path, dice: random.Random) -> Made:
    """The header of an engine file changed, its checksum made again or not."""
    header = engine_header(MODEL)
    values: Any = json.loads(json.dumps(header.to_dict()))
    place = dice.choice(list(places(values)))
    put(values, place, dice.choice(VALUES))
    changed = replace(header)
    object.__setattr__(changed, "to_dict", lambda: values)
    data = pack(changed, bytes(range(256)) * 8)
    if dice.random() < 0.3:
        data = bent(data, dice)
    elif dice.random() < 0.2:  # a length that lies
        data = data[:8] + struct.pack("<I", dice.randrange(2**32)) + data[12:]
    file = folder / "model.trt.engine"
    file.write_bytes(data)
    words = ["predict", "--json", "--engine", "tensorrt", "--model", str(file), str(IMAGE)]
    return "labels of an engine", dice.choice([words, ["inspect", str(file)], ["inspect", "--json", str(file)]])


def changed_record(folder: Path, dice: random.Random) -> Made:
    """A value of ``report.json`` or ``device.json`` of an export's folder replaced, or bytes of it."""
    export = folder / "export"
    shutil.copytree(SHIPPED, export)
    device = {"schema": 1, "file": MODEL.name, "sha256": read_artifact(MODEL).sha256, "engine": "ort", "threads": 1}
    if dice.random() < 0.4:
        (export / "device.json").write_text(json.dumps({**device, "batch": 1, "machine": {"cpu": "a"}}))
    name = dice.choice([n for n in ("report.json", "device.json") if (export / n).exists()])
    text = (export / name).read_text()
    if dice.random() < 0.3:
        (export / name).write_bytes(bent(text.encode(), dice))
    else:
        values = json.loads(text)
        place = dice.choice(list(places(values)))
        put(values, place, dice.choice(VALUES))
        (export / name).write_text(json.dumps(values))
    verbs = [["predict", "--json", "--model", str(export), str(IMAGE)], ["inspect", str(export)]]
    return f"labels of {name}", dice.choice(verbs)


KINDS: dict[str, Maker] = {
    "model file, damaged": damaged_file,
    "card, sealed again": changed_card,
    "graph, sealed again": changed_graph,
    "engine header": changed_engine,
    "records of an export": changed_record,
    **folders.kinds(),
}


def _batch(kind: str, seed: str, count: int, sound: dict[str, Any], told: Path) -> int:
    """Try some files of a kind; what came of each is a line of ``told``, written before the next."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    dice = random.Random(seed)
    with told.open("w") as stream:
        for i in range(count):
            folder = Path(f"{i}")
            folder.mkdir()
            made = KINDS[kind](folder, dice)
            stream.write(json.dumps(["begun", made[0]]) + "\n")
            stream.flush()
            stream.write(json.dumps(judged(made, sound)) + "\n")
            stream.flush()
            shutil.rmtree(folder)
    return 0


def torture(root: Path, seed: int, minutes: float) -> Report:
    """Try files of each kind in turn, a batch a time, until the time is over."""
    report, outcomes = Report(), Counter[str]()
    os.environ["QDEPLOY_CACHE"] = str(root / "cache")
    code, out, err = answer(["predict", "--json", "--model", str(MODEL), str(IMAGE)])
    assert code == 0, err
    folders.prepare(root)
    sound = json.loads(out)["predictions"][0]
    end, number = time.monotonic() + minutes * 60, 0
    while time.monotonic() < end or number < len(KINDS):
        kind = list(KINDS)[number % len(KINDS)]
        folder = root / f"batch-{number}"
        folder.mkdir()
        told = root / "told"
        count = BATCH if minutes > 1 else max(4, round(BATCH * minutes))
        ended = forked(partial(_batch, kind, f"{seed}-{number}", count, sound, told), folder)
        lines = [json.loads(line) for line in told.read_text().splitlines()]
        results = [line for line in lines if line[0] != "begun"]
        outcomes.update(f"{kind}: {outcome}" for outcome, _ in results)
        faults = [f"batch {number}: {fault}" for _, fault in results if fault]
        if ended.code != 0:
            faults.append(f"batch {number} ends with {ended.code} at {lines[-1][1]}: {ended.err[-300:]}")
        report.add(kind, "file", faults, len(results))
        shutil.rmtree(folder)
        number += 1
    report.facts = {"outcomes": dict(sorted(outcomes.items()))}
    return report
