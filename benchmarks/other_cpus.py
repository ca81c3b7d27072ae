"""INT8 on CPUs that this computer is not: what ONNX Runtime and OpenVINO answer there, and how fast.

    python benchmarks/other_cpus.py [--out NAME] [FILE ...]

This computer plays older x86 CPUs at native speed (tests/emulation/disguise.py) and, where qemu-aarch64 is installed,
ARM CPUs (scripts/emulated_arm.sh), which are too slow to time. By default the files are the shipped two and a fresh
export of nano-ar for four targets. Answers are compared with those of ONNX Runtime on this computer undisguised, on
test images of the embedded data set. "Plain" is what happens without qdeploy's cure: the session of ONNX Runtime's
Python binding without entries, and of OpenVINO also for files that qdeploy refuses to open with it.

Speeds: batch 1, one thread, all files in one process in turn, each with and without the session entry of the cure,
whichever of them qdeploy chooses. `times_fp32` compares with the fp32 file in the same folder; `entry_costs` is the
time with the entry divided by the time without. Both have 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from machine import keep
from numpy.typing import NDArray

from qdeploy.bench import compare, sample_images, time_rounds
from qdeploy.core.artifact import SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import ArtifactError
from qdeploy.core.machine import SPEED_FLAGS, cpu_flags, native_target, saturates, versions
from qdeploy.core.metrics import Floats, agreement, percentile
from qdeploy.data.embedded import embedded_source
from qdeploy.runtime.session import Session, open_session

sys.path.append(str(Path(__file__).parents[1]))  # where the package of the tests is
from tests.emulation.disguise import disguise, unavailable

ROOT = Path(__file__).parents[1]
HERE = "this computer"
X86 = ("nehalem", "haswell", "skylake-x", "alderlake", "icelake")
ARM = ("neoverse-n1", "cortex-a72")
TIMED = (HERE, "haswell", "skylake-x")
WITH_OPENVINO = (HERE, "nehalem", "haswell")
TARGETS = "x86,x86-avx2,arm,portable"
OPENVINO_TARGETS = ("float", "x86", "x86-avx2")
IMAGES, ARM_IMAGES, BATCH = 1000, 50, 50
RUNS, SECONDS = 1000, 120.0

Infer = Callable[[NDArray[np.uint8]], Sequence[Floats]]
"""Return logits and probabilities of images."""
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="model files")
    parser.add_argument("--out", default="other_cpus", help="name of the results")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)  # of a CPU and an engine; for ``probed``
    given = parser.parse_args()
    if given.probe:
        cpu, engine = given.probe
        print(json.dumps(probe(cpu, engine, [read_artifact(f) for f in given.files])))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = given.files or [*sorted(SHIPPED.glob("model.*.onnx")), *fresh_files(Path(folder))]
        rows, cpus = measured(files, Path(folder) / "disguises")
    keep(given.out, rows, threads=1, batch=1, timed_runs=RUNS, nice=os.nice(0), cpus=cpus, peers=versions("openvino"))
    print_tables(rows)


def fresh_files(folder: Path) -> list[Path]:
    """Train and export; return the files, fp32 first."""
    from qdeploy.export import ExportConfig, export  # these need torch, which the emulated Python lacks
    from qdeploy.training import config_from_recipe, train

    config = ExportConfig(
        int8=True, target=TARGETS, float_layers=("stem",), calibration="mse", allow_drop=True, allow_slower=True
    )
    run = train(config_from_recipe("small", model="nano-ar", epochs=3), folder / "run").run
    return [Path(a.path) for a in export(Path(run), config, folder / "fresh").artifacts]


def machines(folder: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield the CPUs that can be had, this computer first, the Python to start there, and its environment variables."""
    yield HERE, sys.executable, {}
    for cpu in X86:
        if reason := unavailable(cpu):
            print(f"{cpu} is left out: {reason}", file=sys.stderr)
        else:
            packages = ("onnxruntime", "openvino") if cpu in WITH_OPENVINO else ("onnxruntime",)
            yield cpu, sys.executable, disguise(cpu, folder, packages)
    emulator, python = (ROOT / name for name in ("scripts/emulated_arm.sh", ".venv/arm64/bin/python"))
    if shutil.which("qemu-aarch64") and subprocess.run([emulator], check=False).returncode == 0:
        yield from ((cpu, str(python), {"QDEPLOY_ARM_CPU": cpu}) for cpu in ARM)
    else:
        print("ARM is left out: there is no emulated Python", file=sys.stderr)


def measured(files: list[Path], folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return a row for each CPU, engine and file, and what each CPU has."""
    rows: list[Row] = []
    cpus: dict[str, Any] = {}
    reference: dict[Path, Floats] = {}
    for cpu, python, variables in machines(folder):
        for engine in ("ort", "openvino") if cpu in WITH_OPENVINO else ("ort",):
            wanted = [f for f in files if engine == "ort" or read_artifact(f).card.target in OPENVINO_TARGETS]
            command = [python, str(Path(__file__).resolve()), "--probe", cpu, engine, "--", *map(str, wanted)]
            done = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            cpus[cpu] = {key: found[key] for key in ("flags", "native_target")}
            for file, answer, speed in zip(wanted, found["answers"], found["speeds"], strict=True):
                if file not in reference:  # the first CPU is this computer's, its first engine ONNX Runtime
                    reference[file] = np.array(answer["qdeploy"]["probabilities"])
                name = {"cpu": cpu, "file": f"{file.parent.name}/{file.name}"}
                rows.append({**name, **compared(answer, reference[file]), **speed})
                print(json.dumps(rows[-1]), flush=True)
    return rows, cpus


def compared(answer: dict[str, Any], expected: Floats) -> Row:
    """Return what of a row tells how good the answers are."""
    row: Row = {key: answer[key] for key in ("target", "engine", "refused") if key in answer} | {"n": answer["n"]}
    for prefix, way in {"": "qdeploy", "plain_": "plain"}.items():
        if way in answer:
            found, db = np.array(answer[way]["probabilities"]), answer[way]["goldens_db"]
            row[f"{prefix}goldens_db"] = round(min(db, 200.0), 1)  # those of equal answers are infinite
            row[f"{prefix}max_abs_dp"] = round(float(np.abs(found - expected[: row["n"]]).max()), 6)
            row[f"{prefix}top1_agreement"] = round(agreement(found, expected[: row["n"]]), 4)
            row[f"{prefix}flipped_by"] = round(flipped_by(found, expected[: row["n"]]), 4)
    return row


def flipped_by(found: Floats, expected: Floats) -> float:
    """Return the largest lead, in probability, that the first class had where another is first now; 0 if nowhere."""
    two = np.sort(expected, axis=1)[:, -2:]
    return float(np.where(found.argmax(1) != expected.argmax(1), two[:, 1] - two[:, 0], 0.0).max())


def probe(cpu: str, engine: str, artifacts: list[Artifact]) -> dict[str, Any]:
    """Return what this process's CPU is, and what it answers and how fast."""
    timed, count = engine == "ort" and cpu in TIMED, ARM_IMAGES if cpu in ARM else IMAGES
    return {
        "flags": [flag for flag in SPEED_FLAGS if flag in cpu_flags()],
        "native_target": native_target(),
        "answers": [answered(engine, artifact, count) for artifact in artifacts],
        "speeds": speeds(artifacts) if timed else [{}] * len(artifacts),
    }


def answered(engine: str, artifact: Artifact, count: int) -> dict[str, Any]:
    """Return the answers of a file as qdeploy opens it, or why it does not, and of its plain session."""
    records = embedded_source().records["test"][:count]
    images = np.stack([artifact.card.preprocessing(r.image()) for r in records])
    found: dict[str, Any] = {"target": artifact.card.target, "engine": engine, "n": count}
    try:
        with open_session(artifact, engine, threads=1, selftest=False) as session:
            found |= {"engine": session.engine, "qdeploy": answers(session.infer, artifact, images)}
    except ArtifactError as error:
        found["refused"] = str(error).replace(str(artifact.path), artifact.path.name)
    return {**found, "plain": answers(plain(engine, artifact), artifact, images)}


def answers(infer: Infer, artifact: Artifact, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the agreement with the goldens and the probabilities of the images."""
    goldens = artifact.card.goldens
    rows = [infer(images[i : i + BATCH])[1] for i in range(0, len(images), BATCH)]
    return {
        "goldens_db": goldens.sqnr_db(infer(goldens.images)[0].tolist()),
        "probabilities": np.concatenate(rows).tolist(),
    }


def plain(engine: str, artifact: Artifact) -> Infer:
    """Open a file as an engine is usually opened, on one thread and in float32."""
    if engine == "ort":
        import onnxruntime as ort  # after qdeploy, which switches its usage events off

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(artifact.data, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(["logits", "probabilities"], {"image": images})
    from qdeploy.runtime.engines.openvino_session import core  # opened without its usage statistics

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = core().compile_model(core().read_model(artifact.data), "CPU", hints)
    return lambda images: list(model({"image": images}).values())


def speeds(artifacts: list[Artifact]) -> list[Row]:
    """Time the files in turn; return what of each row tells its speed."""
    ways = [(a, entry) for a in artifacts for entry in (False, True) if a.card.precision == "int8" or not entry]
    inputs = [sample_images(a.card.preprocessing) for a, _ in ways]
    all_rounds = time_rounds([opened(*way) for way in ways], inputs, RUNS, SECONDS)
    rounds = {(a.path, entry): r for (a, entry), r in zip(ways, all_rounds, strict=True)}
    floats = {a.path.parent: rounds[a.path, False] for a in artifacts if a.card.target == "float"}
    rows: list[Row] = []
    for artifact in artifacts:
        path, entry = artifact.path, saturates(artifact.card.target)
        times = [t for block in rounds[path, entry] for t in block]
        row: Row = {f"p{p}_ms": round(percentile(times, p), 4) for p in (10, 50, 90)}
        row |= {"runs": len(times), "entry": entry}
        if artifact.card.precision == "int8":
            row |= ratio("entry_costs", rounds[path, False], rounds[path, True])
            if path.parent in floats:
                row |= ratio("times_fp32", rounds[path, entry], floats[path.parent])
        rows.append(row)
    return rows


def opened(artifact: Artifact, entry: bool) -> Session:
    """Open a file with or without the session entry of the cure."""
    with patch("qdeploy.runtime.engines.onnxruntime_options.saturates", lambda target: entry):
        return open_session(artifact, threads=1, selftest=False)


def ratio(name: str, new: list[list[float]], old: list[list[float]]) -> Row:
    """Return how many times the old takes as long as the new, with its interval."""
    found = compare("new", "old", new, old)
    return {name: round(found.ratio, 3), f"{name}_ci95": [round(v, 3) for v in found.ci95]}


def print_tables(rows: list[Row]) -> None:
    """Print the answers of both engines as Markdown; CPUs where the cure changes a file's have a line of their own."""
    for openvino, without in enumerate(("without the entry", "as OpenVINO is usually opened")):
        groups: dict[tuple[str, bool], list[Row]] = {}
        for row in (r for r in rows if r["engine"].lower().startswith("openvino") == openvino):
            changed = "refused" in row or abs(row["goldens_db"] - row["plain_goldens_db"]) > 1
            groups.setdefault((row["file"], changed), []).append(row)
        heads = ("CPU", "file", "goldens dB", "max abs dp", "top-1 agreement", f"{without}: the same three")
        print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
        for (file, _), alike in groups.items():
            own = ("refused", "", "") if "refused" in alike[0] else worst(alike, "")
            cells = (", ".join(r["cpu"] for r in alike), file, *own, " / ".join(worst(alike, "plain_")))
            print(f"| {' | '.join(cells)} |")
        print()


def worst(rows: list[Row], prefix: str) -> tuple[str, str, str]:
    """Return the worst of rows in each of the three figures of an answer's quality, as text."""
    db, dp, same = ([r[f"{prefix}{name}"] for r in rows] for name in ("goldens_db", "max_abs_dp", "top1_agreement"))
    return f"{min(db):.0f}", f"{max(dp):.3f}", f"{100 * min(same):.1f} %"


if __name__ == "__main__":
    main()
