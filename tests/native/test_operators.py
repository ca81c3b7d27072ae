"""Every operator, on generated graphs: the simulator against ONNX Runtime, and the C against the simulator."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from qdeploy.core.machine import saturates
from qdeploy.native import streams
from qdeploy.native.arithmetic import dequantized, quantized
from qdeploy.native.check import require_sound
from qdeploy.native.ir import Op, Program, Tensor
from qdeploy.native.lower import lower
from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.onnx_graph import read_graph
from qdeploy.native.passes import PASSES
from qdeploy.native.simulate import run_op, simulate
from tests.native.compiled import Compiled, needs_compiler
from tests.native.graphs import (
    CASES,
    ON_CODES,
    SIZE,
    Graph,
    case_of,
    image_of,
    short_rows_of_floats,
    short_rows_on_codes,
)

IMAGES = 3
ROW = "(const float *)rows[0]"
STREAMED = {
    "float stem": "k->conv_row_f32(",
    "float rows": "k->conv_row_f32(",
    "float attention": f"k->softmax({ROW}",
    "float line": "  qd_stream(",
    "float average": "  qd_stream(",
    "image itself": ", image, arena + ",
}
"""What the C of small memory has and the other has not, where it is more than other addresses."""


def program_of(model: onnx.ModelProto, passes: bool = True) -> Program:
    program = lower(read_graph(model.SerializeToString()), SIZE)
    for step in PASSES if passes else ():
        program = step(program)
    return program


def codes_of_onnxruntime(model: onnx.ModelProto, codes: list[str], image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in codes)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": image[None]}), strict=True))


@pytest.mark.skipif(saturates("x86"), reason="ONNX Runtime's own 8-bit products saturate on this CPU")
@pytest.mark.parametrize("name", CASES)
def test_the_simulator_gives_what_onnxruntime_gives(name: str) -> None:
    """Fed ONNX Runtime's codes: operators on codes give the same ones; behind floats, one code may be the next."""
    model, codes = case_of(name)
    program = program_of(model)
    for seed in range(IMAGES):
        image = image_of(seed)
        expected = codes_of_onnxruntime(model, codes, image)
        found = simulate(program, image, expected)
        compared = 0
        for code in set(codes) & set(found):
            assert expected[code].size < 100 or len(np.unique(expected[code])) > 8, "the case must use its range"
            off = np.abs(found[code].astype(int) - expected[code])
            compared += 1
            exact = name in ON_CODES and code != codes[-2]
            assert off.max() <= (0 if exact else 1), code
            assert np.mean(off > 0) <= 0.01
        assert compared >= 3
        assert np.allclose(found["probabilities"], expected["probabilities"], atol=0.03)


OTHERS = ("beyond 31 bits", "sums that wrap around", "short rows", "short rows of floats")


def all_programs() -> dict[str, Program]:
    """Return the programs of all cases, and of others: numbers that no export writes, shapes with own kernels."""
    programs = {name: program_of(case_of(name)[0]) for name in CASES}
    programs["beyond 31 bits"] = program_of(case_of("conv")[0])
    programs["sums that wrap around"] = program_of(case_of("few channels")[0])
    graph = Graph(0)
    programs["short rows"] = program_of(graph.model(short_rows_on_codes(graph), 16))
    graph = Graph(1)
    programs["short rows of floats"] = program_of(graph.model(short_rows_of_floats(graph), 32))
    for op in programs["beyond 31 bits"].ops:
        if op.kind == "conv":
            op.attributes["multiplier"] = op.attributes["multiplier"] * np.float32(1e8)
    for op in programs["sums that wrap around"].ops:
        if op.kind == "conv":
            ends = np.array([2**31 - 1, -(2**31)], np.int32)
            op.attributes["bias"] = np.resize(ends, op.attributes["bias"].shape)
    return programs


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "WORTH_BYTES", 1)
        return Compiled(all_programs(), tmp_path_factory.mktemp("operators"), "-O1", small=True)


@needs_compiler
@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_every_tier_gives_the_simulators_bits(compiled: Compiled, name: str) -> None:
    program = compiled.programs[name]
    for seed in range(IMAGES):
        image = image_of(seed)
        expected = simulate(program, image)
        for tier in compiled.tiers:
            found = compiled.run(name, tier, image)
            assert np.array_equal(found["logits"], expected[program.logits.name].reshape(-1)), tier
            assert np.array_equal(found["probabilities"], expected[program.probabilities.name].reshape(-1))
            shared = set(found) & set(expected)
            assert len(shared) > len(program.ops) / 2
            for tensor in shared:
                assert np.array_equal(found[tensor].reshape(-1), expected[tensor].reshape(-1)), (tier, tensor)
            again = compiled.run(f"{name}, small", tier, image)
            assert np.array_equal(again["logits"], found["logits"]), tier
            assert np.array_equal(again["probabilities"], found["probabilities"]), tier


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_small_memory_is_smaller(compiled: Compiled, name: str) -> None:
    small, large = compiled.sources[f"{name}, small"], compiled.sources[name]
    assert small.arena_bytes < large.arena_bytes / 1.05
    assert STREAMED.get(name, "") in small.text
    assert "  qd_stream(" not in large.text


def test_int8_activations_give_the_same_numbers_as_uint8() -> None:
    logits = []
    for signed in (False, True):
        graph = Graph(5)
        start = graph.pair(graph.start, -150, 160, signed)
        weight, scales = graph.weight((5, 3, 3, 3))
        made = graph.node("Conv", [start, weight, graph.bias(scales * np.float32(310 / 255))])
        program = program_of(graph.model(graph.pair(made, -20, 25, signed), 5))
        logits.append(simulate(program, image_of(1))[program.logits.name])
    assert np.array_equal(logits[0], logits[1])


@pytest.mark.parametrize("turned", [False, True])
def test_a_softmax_between_codes_is_on_integers_and_as_close_as_rounding(turned: bool) -> None:
    graph = Graph(3)
    start = graph.node("Transpose", [graph.entrance()], perm=[0, 2, 3, 1])
    x = graph.node("Softmax", [start], axis=-1)
    made = graph.pair(graph.node("Transpose", [x], perm=[0, 3, 1, 2]) if turned else x, 0, 1)
    program = program_of(graph.model(made if turned else graph.node("Transpose", [made], perm=[0, 3, 1, 2]), 3))
    softmax = next(op for op in program.ops if op.kind == "softmax")
    assert softmax.output.integer
    codes = np.random.default_rng(0).integers(0, 16, softmax.inputs[0].shape, np.uint8)  # near enough to count
    floats = dequantized(codes, 310 / 255, 0).astype(np.float64)
    powers = np.exp(floats - floats.max(axis=-1, keepdims=True))
    exact = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    off = np.abs(run_op(softmax, [codes]).astype(int) - quantized(exact, 1 / 255, 0))
    assert off.max() <= 1
    assert np.mean(off > 0) < 0.01


PLACES: dict[str, tuple[int, int | list[float], bool]] = {
    "constant ones": (5, [4.0, 0.0], True),
    "behind the last": (5, [0.0, 5.0], False),
    "before the first": (5, [0.0, -1.0], False),
    "no number": (5, [0.0, float("nan")], False),
    "more than floats count": (2**24 + 1, [0.0], False),
    "of the best of 5": (5, 5, True),
    "of the best of 7": (5, 7, False),
    "of the best of too many": (2**24 + 1, 2**24 + 1, False),
}
"""An axis, and constant places or the number of values whose best are taken; whether that is right."""


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_not_on_their_axis_are_refused(name: str) -> None:
    side, given, right = PLACES[name]

    def floats(name: str, *shape: int) -> Tensor:
        return Tensor(name, shape, data=np.broadcast_to(np.float32(0), shape))

    ops = []
    if isinstance(given, int):
        places = Tensor("places", (2,))
        ops.append(Op("topk", [floats("scores", given)], places))
    else:
        places = Tensor("places", (len(given),), data=np.array(given, np.float32))
    made = Tensor("made", (1, places.size))
    ops.append(Op("pick", [floats("values", 1, side), places], made, {"axis": 1}))
    program = Program(ops, Tensor("image", (1, SIZE, SIZE, 3), 1.0, 0), made, made)
    with contextlib.nullcontext() if right else pytest.raises(UnsupportedError):
        require_sound(program)


@pytest.mark.parametrize(
    ("kind", "attributes", "why"),
    [
        ("LRN", {"size": 3}, "LRN: there is no kernel"),
        ("HardSigmoid", {"alpha": 0.3}, "HardSigmoid: its attributes"),
        ("Softmax", {"axis": 1}, "Softmax: only the last axis"),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, "MaxPool: only plain pooling"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(kind: str, attributes: dict[str, Any], why: str) -> None:
    graph = Graph(0)
    x = graph.node(kind, [graph.start], **attributes)
    with pytest.raises(UnsupportedError, match=f"^the native engine cannot compile this model: {why}") as caught:
        program_of(graph.model(graph.pair(x, -150, 160), 3))
    assert "\n" not in str(caught.value)
