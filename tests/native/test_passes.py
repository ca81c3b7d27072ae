"""Each pass alone: it does what it is for, and changes no number."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.native.ir import KINDS, Op, Program, Tensor
from qdeploy.native.layout import lay_out
from qdeploy.native.lower import lower
from qdeploy.native.memory import plan_arena
from qdeploy.native.onnx_graph import read_graph
from qdeploy.native.passes import PASSES, collapse_chains, fuse_clamps, quantize_early, tabulate_floats, without_dead
from qdeploy.native.simulate import simulate
from qdeploy.native.source import model_source
from tests.native.graphs import CASES, SIZE, case_of, image_of


def lowered(name: str) -> Program:
    return lower(read_graph(case_of(name)[0].SerializeToString()), SIZE)


def kinds(program: Program) -> list[str]:
    return [op.kind for op in program.ops]


@pytest.mark.parametrize("name", CASES)
def test_passes_change_no_number(name: str) -> None:
    program, image = lowered(name), image_of(7)
    before = simulate(program, image)
    for step in PASSES:
        changed = step(program)
        after = simulate(changed, image)
        for tensor in set(before) & set(after):
            assert np.array_equal(before[tensor], after[tensor]), (step, tensor)
        assert changed.outputs == program.outputs
        program = changed


def test_a_gelu_on_codes_becomes_one_table() -> None:
    program = lowered("gelu")
    assert kinds(program).count("table") == 1
    assert "mul" in kinds(program)
    collapsed = collapse_chains(program)
    assert kinds(collapsed).count("table") == 1
    assert "mul" not in kinds(collapsed)
    (table,) = (op for op in collapsed.ops if op.kind == "table")
    assert table.attributes["table"].shape == (256,)


def test_what_has_two_sources_is_no_chain() -> None:
    assert "add" in kinds(collapse_chains(lowered("residual")))
    assert "mul" in kinds(collapse_chains(lowered("gate")))


def test_clamps_go_into_what_makes_their_input() -> None:
    program = lowered("float stem")
    fused = fuse_clamps(program)
    assert kinds(program).count("unary") == 2
    assert "unary" not in kinds(fused)
    assert [op.attributes["clamp"][1] for op in fused.ops if "clamp" in op.attributes][-1] == 6.0


def test_a_clamp_stays_where_its_input_is_read_elsewhere() -> None:
    x, y, z, w = (Tensor(n, (1, 4)) for n in "xyzw")
    ops = [
        Op("add", [x, x], y),
        Op("unary", [y], z, {"function": "clamp", "clamp": (0.0, 6.0)}),
        Op("add", [y, z], w),
    ]
    assert kinds(fuse_clamps(Program(ops, x, w, w))) == ["add", "unary", "add"]


def test_what_is_moved_and_quantized_is_quantized_first() -> None:
    program = lowered("float attention")
    kind = {op.output: op.kind for op in program.ops}
    moved = [op for op in program.ops if op.kind == "quantize" and kind.get(op.inputs[0]) == "reshape"]
    assert moved
    early = quantize_early(program)
    kind = {op.output: op.kind for op in early.ops}
    assert not [op for op in early.ops if op.kind == "quantize" and kind.get(op.inputs[0]) == "reshape"]
    assert kinds(early).count("quantize") == kinds(program).count("quantize")


def test_floats_between_codes_become_tables() -> None:
    program = lowered("float tables")
    done = tabulate_floats(program)
    assert [op.attributes.get("axis") for op in done.ops if op.kind in ("table", "tables")] == [1, 1, 1, None]
    assert {"mul", "div", "unary"} < set(kinds(program))
    assert not {"mul", "div", "unary"} & set(kinds(done))


def test_floats_that_are_read_elsewhere_stay() -> None:
    program = lowered("float tables")
    chain = next(op for op in program.ops if op.kind == "div")
    extra = Op("unary", [chain.output], Tensor("extra", chain.output.shape), {"function": "exp"})
    at = program.ops.index(chain) + 1
    read = Program([*program.ops[:at], extra, *program.ops[at:]], program.image, extra.output, program.probabilities)
    assert kinds(tabulate_floats(read)).count("tables") == kinds(tabulate_floats(program)).count("tables") - 1


def test_what_is_not_finite_is_computed_and_no_table() -> None:
    """C takes the root of -1 for -1, and numpy for no number."""
    out = Tensor("out", (1, 4), 0.1, 3)
    floats, roots = Tensor("floats", (1, 4)), Tensor("roots", (1, 4))
    for lowest, found in ((0, ["table"]), (10, ["dequantize", "unary", "quantize"])):
        codes = Tensor("codes", (1, 4), 0.1, lowest)
        ops = [
            Op("dequantize", [codes], floats),
            Op("unary", [floats], roots, {"function": "sqrt"}),
            Op("quantize", [roots], out),
        ]
        with np.errstate(invalid="ignore"):
            assert kinds(tabulate_floats(Program(ops, codes, out, out))) == found


def test_a_product_turned_around_copies_the_smaller_matrix() -> None:
    """v A' is made as (A v')': v is copied, and not the larger A."""
    layout = lay_out(lowered("float attention"))
    copied = {op.output.shape for op in layout.program.ops if op.kind == "copy" and not op.output.integer}
    assert (1, 2, 81, 3) in copied
    assert (1, 2, 81, 81) not in copied


def test_the_shipped_models_memory_is_small() -> None:
    assert model_source(read_artifact(SHIPPED / "model.int8.onnx")).arena_bytes <= 80_000


def test_what_nothing_reads_is_left_out() -> None:
    x, y, z = (Tensor(n, (1, 4)) for n in "xyz")
    program = Program([Op("add", [x, x], y), Op("mul", [x, x], z)], x, y, y)
    assert kinds(without_dead(program)) == ["add"]


def test_a_program_is_written_by_its_grammar() -> None:
    for line in str(lowered("gate")).splitlines():
        tensor, _, rest = line.partition(" = ")
        name, _, kind = tensor.rpartition(":")
        assert name
        assert kind.startswith(("u8[", "f32["))
        assert rest.split("(")[0] in KINDS


@pytest.mark.parametrize("name", CASES)
def test_no_memory_is_overwritten_while_it_is_needed(name: str) -> None:
    """Replays the plan: what an operator reads is what was last written there."""
    layout = lay_out(lowered(name))
    scratch = {op: 192 for op in layout.program.ops if op.kind == "conv"}
    arena = plan_arena(layout, scratch)
    owners = [-1] * arena.size_bytes

    def span(tensor: Tensor) -> range:
        root, _ = layout.root(tensor)
        start = arena.offsets.get(root)
        return range(start, start + root.size_bytes) if start is not None else range(0)

    for i, op in enumerate(layout.program.ops):
        for t in op.inputs:
            root = layout.root(t)[0]
            assert {owners[at] for at in span(t)} <= {id(root)}, (i, op)
        for at in range(arena.scratch.get(op, 0), arena.scratch.get(op, 0) + scratch.get(op, 0)):
            owners[at] = -2
        if op.kind != "view":
            for at in span(op.output):
                owners[at] = id(layout.root(op.output)[0])
    assert arena.size_bytes <= plan_arena(layout, scratch, reuse=False).size_bytes / 1.3
