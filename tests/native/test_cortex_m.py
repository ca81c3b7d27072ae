"""The preset for microcontrollers: on integers, within its flash and RAM, and on emulated boards bit for bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qdeploy.checks.device import Device, command_of, verify_device
from qdeploy.core.artifact import Artifact, read_artifact
from qdeploy.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qdeploy.data.catalog import load_dataset
from qdeploy.export import ExportConfig, export, write_kits
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.memory import memory_on_integers
from qdeploy.export.sources.trace import trace
from qdeploy.models.folding import deploy
from qdeploy.models.registry import create_model
from qdeploy.native.emit import emit
from qdeploy.native.simulate import simulate
from qdeploy.native.source import framed, memory_of, memory_of_program, program_from, program_of
from qdeploy.training import config_from_recipe, train
from tests.native.compiled import needs_compiler

pytestmark = [pytest.mark.slow, needs_compiler]
FLASH, RAM = 256 << 10, 96 << 10
BOARDS = {"cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500"}
TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm")
IMAGES = 10
FLASH_SLACK = 2048
"""Bytes by which the forecast may be above the linked size; it is never below."""
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
needs_board = pytest.mark.skipif(
    bool(missing),
    reason=f"not installed: {', '.join(missing)} (Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm)",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of pico after one epoch on the embedded images, nothing in float, with its kit."""
    place = tmp_path_factory.mktemp("pico")
    train(config_from_recipe("small", model="pico", epochs=1), place / "run")
    config = ExportConfig(int8=True, float_layers=("none",), target="cortex-m", allow_drop=True, allow_slower=True)
    export(place / "run", config, place / "export")
    write_kits(place / "export", ["native"], place)
    return place


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return read_artifact(folder / "export" / "model.int8.cortex-m.onnx")


def test_every_layer_is_on_integers(artifact: Artifact) -> None:
    program = program_of(artifact)
    assert artifact.card.float_layers == ()
    floats = [op.kind for op in program.ops if not op.output.integer]
    assert floats == ["dequantize", "mul", "softmax"]  # temperature and answer
    layers = [op for op in program.ops if op.kind in ("conv", "linear", "matmul")]
    assert len(layers) == 39
    assert all(t.integer for op in layers for t in op.inputs)


def test_flash_and_ram_are_within_the_limits(artifact: Artifact) -> None:
    needed = memory_of(artifact)
    assert needed["whole_flash_bytes"] <= FLASH
    assert needed["whole_ram_bytes"] <= RAM
    untrained = memory_on_integers(create_model("pico", 10), 64, artifact.card.target)  # what a sweep forecasts
    assert untrained["whole_ram_bytes"] == needed["whole_ram_bytes"]
    assert untrained["whole_flash_bytes"] == needed["whole_flash_bytes"]


@needs_board
@pytest.mark.parametrize("cpu", BOARDS)
@pytest.mark.parametrize("on_integers", [True, False])
@pytest.mark.parametrize("name", ["nano", "nano-ar"])
def test_the_forecast_of_flash_is_what_the_linker_makes(
    name: str, on_integers: bool, cpu: str, folder: Path, tmp_path: Path
) -> None:
    graph = trace(deploy(create_model(name, 10).eval(), IMAGENET_MEAN, IMAGENET_STD), 64)
    names = [name for node in graph.graph.node for name in node.output]
    if on_integers:
        graph = quantize(
            graph, {n: (-1.0, 1.0 + i / len(names)) for i, n in enumerate(names)}, encoding_for("cortex-m")
        )
    program = program_from(graph.SerializeToString(), 64)
    board = Path(shutil.copytree(folder / "kit-native", tmp_path / "board"))
    (board / "model.c").write_text(framed(emit(program), name, "0" * 64, 64, 10))
    made = ["make", "-s", f"CPU={cpu}", "size"]
    sizes = subprocess.run(made, cwd=board / "cortex_m", check=True, capture_output=True, text=True).stdout
    text, data, _ = map(int, sizes.splitlines()[1].split()[:3])
    assert 0 <= memory_of_program(program)["whole_flash_bytes"] - (text + data) <= FLASH_SLACK


@needs_board
@pytest.mark.parametrize("cpu", BOARDS)
def test_a_board_gives_the_bits_of_this_cpu_and_of_the_simulator(
    folder: Path, artifact: Artifact, cpu: str, tmp_path: Path
) -> None:
    kit, program, needed = folder / "kit-native", program_of(artifact), memory_of(artifact)
    here, board = (Path(shutil.copytree(kit, tmp_path / name)) for name in ("here", "board"))
    subprocess.run(["make", "-s", "CFLAGS=-O1 -Werror"], cwd=here, check=True)
    made = ["make", "-s", f"CPU={cpu}", "CFLAGS=-Os -Werror", "size"]
    sizes = subprocess.run(made, cwd=board / "cortex_m", check=True, capture_output=True, text=True).stdout
    text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
    assert 0 <= needed["whole_flash_bytes"] - (text + data) <= FLASH_SLACK
    assert needed["whole_flash_bytes"] <= FLASH
    assert needed["whole_ram_bytes"] * 0.98 <= data + bss <= needed["whole_ram_bytes"] <= RAM

    emulator = f"qemu-system-arm -M {BOARDS[cpu]} -kernel '{board}/cortex_m/classify.elf'"
    command = f"{emulator} -display none -monitor none -serial stdio"
    images = load_dataset("fashion-mnist-mini").splits["test"].pixels[:IMAGES]
    with (
        Device(command_of(f"'{here}/classify' --photos")) as native,
        Device(command_of(command)) as device,
    ):
        assert device.model.sha256 == artifact.sha256
        for image in images:
            expected = simulate(program, image)[program.logits.name][0]
            for one in (native, device):
                answer = one.answer(image)
                assert np.array_equal(answer.logits.view(np.uint32), expected.view(np.uint32))
                assert answer.label == expected.argmax()
    assert verify_device(kit, command).ok
