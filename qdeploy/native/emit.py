"""C from a program: parameters as constants, weights as one blob, and one function that calls the kernels in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.native.ir import Op, Program, Tensor
from qdeploy.native.layout import Layout, lay_out
from qdeploy.native.loops import copy_loops, pair_loops
from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.memory import Arena, plan_arena
from qdeploy.native.pack import (
    BLOCK,
    border_sums,
    by_block,
    folded_bias,
    is_depthwise,
    kernel_weight,
    limits,
    packed_depthwise,
    packed_f32,
    packed_u8,
    product_bytes,
    requantization,
    taps,
    widened_bytes,
    window,
)
from qdeploy.native.stages import stages_of, write_stream
from qdeploy.native.streams import with_streams

Array = NDArray[Any]
UNARY = {
    name: i
    for i, name in enumerate(
        ("clamp", "sigmoid", "exp", "erf", "gelu", "silu", "tanh", "hardsigmoid", "hardswish", "sqrt")
    )
}
"""Numbers of the functions in ``c/kernels_body.h``."""
BINARY = {"add": 0, "sub": 1, "mul": 2, "div": 3}
MAX_ROWS = 16
"""``QD_MAX_ROWS`` in ``c/kernels.h``."""
MAX_TAPS = 64
"""``QD_MAX_TAPS`` in ``c/kernels_vnni_u8.h``."""
LARGEST_ARENA = 1 << 30
WRAP = 12
"""Numbers on a line."""


@dataclass
class Source:
    """The C of one model."""

    text: str
    arena_bytes: int
    constant_bytes: int
    """Weights, tables and other constants."""
    places: dict[Tensor, tuple[int, Layout]] = field(repr=False, default_factory=dict)
    """Offset in the arena of every tensor that has one, for tests."""


def emit(program: Program, reuse: bool = True, prefix: str = "") -> Source:
    """Write the C of a program.

    Args:
        program: After the passes.
        reuse: Whether memory is used again; without, every tensor can be read after a run, and nothing is streamed.
        prefix: What the names of the constants begin with, and the function's behind ``qdeploy_native_``.

    Raises:
        UnsupportedError: If a kernel does not take a shape, or the arena would be too large.
    """
    return _written(program, reuse, prefix).source()


def memory_needed(program: Program) -> tuple[int, int]:
    """Return the bytes of RAM and of constants that a program's C needs, without writing it.

    Raises:
        UnsupportedError: As ``emit`` does.
    """
    writer = _written(program, texts=False)
    return writer.arena.size_bytes, writer.constant_bytes + len(writer.blob)


def _written(program: Program, reuse: bool = True, prefix: str = "", texts: bool = True) -> Writer:
    layout = lay_out(program)
    if reuse:
        layout = with_streams(layout)
    scratch = {op: _scratch(layout, op) for op in layout.program.ops}
    arena = plan_arena(layout, scratch, reuse)
    if arena.size_bytes > LARGEST_ARENA:
        raise UnsupportedError("graph", f"it would need {arena.size_bytes:,} bytes of working memory")
    writer = Writer(layout, arena, prefix, texts)
    for op in layout.program.ops:
        writer.call(op)
    return writer


class Writer:
    """Writes the C of a program, operator by operator."""

    def __init__(self, layout: Layout, arena: Arena, prefix: str, texts: bool = True) -> None:
        """Start; without ``texts`` constants are counted and not written."""
        self.layout, self.arena, self.prefix, self.texts = layout, arena, prefix, texts
        self.constants: list[str] = []
        self.calls: list[str] = []
        self.blob = bytearray()
        self.constant_bytes = 0
        self._named: dict[Tensor, str] = {}
        self._elsewhere: dict[Tensor, str] = {}

    def source(self) -> Source:
        """Return what was written."""
        words = np.frombuffer(bytes(self.blob) + bytes(8), "<u8")
        self.constant_bytes += len(self.blob)
        blob = _array("uint64_t", f"{self.prefix}weights", [f"0x{w:x}u" for w in words], aligned=True)
        program = self.layout.program
        ends = (
            f"  memcpy({name}, {self.at(t)}, sizeof(float) * {t.size});"
            for name, t in zip(("logits", "probabilities"), program.outputs, strict=True)
        )
        text = "\n".join([blob, *self.constants, _RUN_HEAD.format(prefix=self.prefix), *self.calls, *ends, "}", ""])
        places = {}
        for op in program.ops:
            root, offset = self.layout.root(op.output)
            if root in self.arena.offsets:
                item = 1 if op.output.integer else 4
                places[op.output] = (self.arena.offsets[root] + offset * item, self.layout)
        return Source(text, self.arena.size_bytes, self.constant_bytes, places)

    def at(self, tensor: Tensor) -> str:
        """Return the address of a tensor's values."""
        if tensor in self._elsewhere:
            return self._elsewhere[tensor]
        root, offset = self.layout.root(tensor)
        if root.data is not None:
            return self._constant_tensor(root)
        if root is self.layout.program.image:
            return f"image + {offset}" if offset else "image"
        place = self.arena.offsets[root] + offset * (1 if tensor.integer else 4)
        return f"arena + {place}" if tensor.integer else f"(float *)(void *)(arena + {place})"

    def _constant_tensor(self, tensor: Tensor) -> str:
        if tensor not in self._named:
            assert tensor.data is not None
            kind = "uint8_t" if tensor.integer else "float"
            self._named[tensor] = self.array(kind, tensor.data)
        return self._named[tensor]

    def array(self, kind: str, values: Array, aligned: bool = False) -> str:
        """Add a constant array and return its name."""
        flat = np.asarray(values).reshape(-1)
        self.constant_bytes += flat.size * {"uint8_t": 1, "int16_t": 2}.get(kind, 4)
        name = self.named("c")
        if not self.texts:
            self.constants.append("")
            return name
        texts = [number(v) for v in flat] if kind == "float" else [_integer(int(v)) for v in flat]
        self.constants.append(_array(kind, name, texts, aligned))
        return name

    def wide(self, kind: str, values: Array) -> str:
        """Add a constant array for kernels of vectors, which no other build holds, and return its name."""
        before = self.constant_bytes
        name = self.array(kind, values)
        self.constant_bytes = before
        self.constants[-1] = f"#ifdef QD_WIDE\n{self.constants[-1]}\n#else\n#define {name} NULL\n#endif"
        return name

    def named(self, kind: str) -> str:
        """Return a name that nothing has yet."""
        return f"{self.prefix}{kind}{len(self.constants)}"

    def captured(self, op: Op, places: dict[Tensor, str]) -> str:
        """Return the C of one operator whose tensors are elsewhere."""
        self._elsewhere = places
        before = len(self.calls)
        self.call(op)
        self._elsewhere = {}
        made, self.calls = self.calls[before:], self.calls[:before]
        return "\n".join(made)

    def struct(self, kind: str, fields: Mapping[str, Any]) -> str:
        """Add a constant structure and return its address."""
        name = self.named("p")
        inside = ", ".join(f".{k} = {_value(v)}" for k, v in fields.items())
        self.constants.append(f"static const {kind} {name} = {{{inside}}};")
        return f"&{name}"

    def call(self, op: Op) -> None:
        """Write one operator."""
        if op.kind == "view":
            return
        getattr(self, f"_{op.kind}")(op)

    def _line(self, kernel: str, *arguments: object) -> None:
        self.calls.append(f"  k->{kernel}({', '.join(map(str, arguments))});")

    def _scratch_of(self, op: Op) -> str:
        return f"arena + {self.arena.scratch[op]}" if op in self.arena.scratch else "NULL"

    def _conv(self, op: Op) -> None:
        if op.output.integer:
            (self._depthwise_u8 if is_depthwise(op) else self._conv_u8)(op)
        else:
            self._conv_f32(op)

    _linear = _conv

    def _conv_u8(self, op: Op) -> None:
        weights, offsets, steps = packed_u8(op)
        groups, blocks = weights.shape[:2]
        fields = {
            **self._outputs(op, groups, blocks),
            **window(op),
            "out_channels": kernel_weight(op).shape[0],
            "segments": len(offsets),
            "steps": steps,
            "dilation_y": taps(op)["dilation_y"],
            **requantization(op),
            "offsets": self.array("int32_t", offsets),
            "weights": self._in_blob(weights),
            "bias": self.array("int32_t", by_block(folded_bias(op).reshape(groups, -1), BLOCK)),
            "border": self._border(op),
            "multiplier": self.array("float", by_block(op.attributes["multiplier"].reshape(groups, -1), BLOCK)),
        }
        struct = self.struct("qd_conv_u8", fields)
        self._line("conv_u8", struct, self.at(op.inputs[0]), self.at(op.output), self._scratch_of(op))

    def _outputs(self, op: Op, groups: int, blocks: int) -> dict[str, int]:
        outputs, inputs = kernel_weight(op).shape[:2]
        return {"groups": groups, "inputs": inputs, "outputs": outputs // groups, "blocks": blocks}

    def _border(self, op: Op) -> str:
        sums = border_sums(op)
        return "NULL" if sums is None else self.wide("int32_t", sums)

    def _in_blob(self, weights: Array) -> str:
        at = len(self.blob)
        self.blob += np.ascontiguousarray(weights).astype(np.int8).tobytes()
        self.blob += bytes(-len(self.blob) % 64)
        return f"{self.prefix}weights + {at // 8}"

    def _depthwise_u8(self, op: Op) -> None:
        weights = kernel_weight(op)[:, 0].transpose(1, 2, 0)
        if weights[..., 0].size > MAX_TAPS:
            raise UnsupportedError(
                "Conv", f"a window of {weights[..., 0].size} places, at most {MAX_TAPS} are compiled"
            )
        packed = packed_depthwise(op)
        fields = {
            **window(op),
            **taps(op),
            **requantization(op),
            "weights": self.array("int16_t", weights),
            "bias": self.array("int32_t", folded_bias(op)),
            "multiplier": self.array("float", op.attributes["multiplier"]),
            "packed": self.wide("int8_t", packed.weights),
            "packed_bias": self.wide("int32_t", packed.bias),
            "packed_multiplier": self.wide("float", packed.multiplier),
        }
        struct = self.struct("qd_depthwise_u8", fields)
        self._line("depthwise_u8", struct, self.at(op.inputs[0]), self.at(op.output), self._scratch_of(op))

    def _stream(self, op: Op) -> None:
        write_stream(self, op)

    def _conv_f32(self, op: Op) -> None:
        struct = self.conv_f32_struct(op)
        self._line("conv_f32", struct, self.at(op.inputs[0]), self.at(op.output), self._scratch_of(op))

    def conv_f32_struct(self, op: Op) -> str:
        """Add the parameters of a convolution on floats and return their address."""
        size, groups = taps(op), op.attributes["group"]
        if size["rows"] > MAX_ROWS:
            raise UnsupportedError("Conv", f"a window of {size['rows']} rows, at most {MAX_ROWS} are compiled")
        depthwise = is_depthwise(op)
        outputs = kernel_weight(op).shape[0] // groups
        lanes = 0 if depthwise else 8 if outputs <= 8 else BLOCK
        if depthwise:
            weights, bias = kernel_weight(op)[:, 0].transpose(1, 2, 0), np.pad(op.attributes["bias"], (0, 7))
        else:
            weights = packed_f32(op, lanes)
            bias = by_block(op.attributes["bias"].reshape(groups, -1), lanes)
        fields = {
            **self._outputs(op, groups, -(-outputs // lanes) if lanes else 0),
            "lanes": lanes,
            **window(op),
            **size,
            "out_channels": kernel_weight(op).shape[0],
            **limits(op),
            "weights": self.array("float", weights, aligned=True),
            "bias": self.array("float", bias),
        }
        return self.struct("qd_conv_f32", fields)

    def _table(self, op: Op) -> None:
        table = self.array("uint8_t", op.attributes["table"], aligned=True)
        self._line("table", table, self.at(op.inputs[0]), self.at(op.output), op.output.size)

    def _binary(self, op: Op) -> None:
        a = op.attributes
        loops = pair_loops(self.layout, op)
        if not op.output.integer:
            fields: dict[str, Any] = {"loops": loops, "function": BINARY[op.kind], **limits(op)}
            self._pair("binary_f32", "qd_binary_f32", fields, op)
        elif op.kind == "add":
            fields = {"loops": loops, **{k: a[k] for k in ("ratio_a", "ratio_b", "fixed")}}
            self._pair("add_u8", "qd_binary_u8", fields, op)
        else:
            zeros = {"zero_a": op.inputs[0].zero, "zero_b": op.inputs[1].zero, "zero_out": float(op.output.zero)}
            self._pair("mul_u8", "qd_binary_u8", {"loops": loops, "multiplier": a["multiplier"], **zeros}, op)

    _add = _sub = _mul = _div = _binary

    def _pair(self, kernel: str, kind: str, fields: dict[str, Any], op: Op, *more: str) -> None:
        inputs = (self.at(t) for t in op.inputs)
        self._line(kernel, self.struct(kind, fields), *inputs, self.at(op.output), *more)

    def _matmul(self, op: Op) -> None:
        (a, b), shape = op.inputs, op.output.shape
        step_a, step_b = (self.layout.strides(t) for t in (a, b))
        batch = int(np.prod(shape[:-2], dtype=np.int64))
        fields: dict[str, Any] = {
            **{"batch": batch, "m": shape[-2], "n": shape[-1], "k": a.shape[-1]},
            **{"a_batch": _batch_step(a, step_a), "a_m": step_a[-2], "a_k": step_a[-1]},
            **{"b_batch": _batch_step(b, step_b), "b_k": step_b[-2]},
        }
        if op.output.integer:
            zeros = {"zero_a": a.zero, "zero_b": b.zero, "zero_out": op.output.zero}
            fields |= {**zeros, "multiplier": op.attributes["multiplier"]}
            self._pair("matmul_u8", "qd_matmul", fields, op, self._scratch_of(op))
        else:
            self._pair("matmul_f32", "qd_matmul", {**fields, **limits(op)}, op)

    def _mean(self, op: Op) -> None:
        (source,), axes = op.inputs, op.attributes["axes"]
        big = [i for i in self.layout.orders[source] if source.shape[i] > 1]
        places = [k for k, i in enumerate(big) if i in axes] or [len(big)]
        sides = [source.shape[i] for i in big]
        outer, count, inner = (
            int(np.prod(part, dtype=np.int64))
            for part in (sides[: places[0]], [sides[k] for k in places if k < len(big)], sides[places[-1] + 1 :])
        )
        along_lanes = not op.output.integer and axes == (len(source.shape) - 1,)
        fields = {
            **{"outer": outer, "outer_stride": count * inner, "inner": inner, "count": count},
            **{"stride": 0 if along_lanes else inner, "zero_in": source.zero, "zero_out": op.output.zero},
            **{"multiplier": op.attributes["multiplier"], **limits(op)},
        }
        kernel = "mean_u8" if op.output.integer else "mean_f32"
        self._pair(kernel, "qd_mean", fields, op)

    def _maxpool(self, op: Op) -> None:
        a, (_, channels, height, width) = op.attributes, op.inputs[0].shape
        fields = {
            **{"height": height, "width": width, "channels": channels},
            **{"out_height": op.output.shape[2], "out_width": op.output.shape[3]},
            **{"rows": a["kernel"][0], "columns": a["kernel"][1]},
            **{"stride_y": a["strides"][0], "stride_x": a["strides"][1], "top": a["pads"][0], "left": a["pads"][1]},
        }
        self._pair("maxpool_u8" if op.output.integer else "maxpool_f32", "qd_maxpool", fields, op)

    def _quantize(self, op: Op) -> None:
        codes = (number(op.output.scale or 1.0), op.output.zero)
        self._line("quantize", self.at(op.inputs[0]), self.at(op.output), op.output.size, *codes)

    def _dequantize(self, op: Op) -> None:
        codes = (number(op.inputs[0].scale or 1.0), op.inputs[0].zero)
        self._line("dequantize", self.at(op.inputs[0]), self.at(op.output), op.output.size, *codes)

    def _unary(self, op: Op) -> None:
        ends = [number(v) for v in limits(op).values()]
        function = UNARY[op.attributes["function"]]
        self._line("unary_f32", function, self.at(op.inputs[0]), self.at(op.output), op.output.size, *ends)

    def _softmax(self, op: Op) -> None:
        side = op.output.shape[-1]
        places = (self.at(op.inputs[0]), self.at(op.output), op.output.size // side, side)
        if not op.output.integer:
            self._line("softmax", *places)
            return
        powers, multiplier = self.array("int32_t", op.attributes["powers"]), number(op.attributes["multiplier"])
        self._line("softmax_u8", powers, *places, multiplier, op.output.zero)

    def _topk(self, op: Op) -> None:
        places = (self.at(op.inputs[0]), self.at(op.output))
        self.calls.append(f"  qd_topk({', '.join(places)}, {op.inputs[0].size}, {op.output.size});")

    def _pick(self, op: Op) -> None:
        (source, places), axis = op.inputs, op.attributes["axis"]
        outer, side, bytes_ = prod(source.shape[:axis]), source.shape[axis], prod(source.shape[axis + 1 :])
        sizes = (outer, side, places.size, bytes_ * (1 if op.output.integer else 4))
        pointers = (self.at(source), self.at(places), self.at(op.output))
        self.calls.append(f"  qd_pick({', '.join(map(str, (*pointers, *sizes)))});")

    def _layernorm(self, op: Op) -> None:
        a, side = op.attributes, op.output.shape[-1]
        terms = (self.array("float", np.broadcast_to(a[k], (side,))) for k in ("scale", "bias"))
        sizes = (op.output.size // side, side)
        self._line("layernorm", self.at(op.inputs[0]), self.at(op.output), *sizes, *terms, number(a["epsilon"]))

    def _copy(self, op: Op) -> None:
        (source,), offset = op.inputs, op.attributes.get("offset", 0)
        item = 1 if op.output.integer else 4
        struct = self.struct("qd_copy", {**copy_loops(self.layout, op), "item": item})
        start = f"{self.at(source)} + {offset}" if offset else self.at(source)
        self.calls.append(f"  qd_copy_run({struct}, {start}, {self.at(op.output)});")

    def _concat(self, op: Op) -> None:
        axis, order = op.attributes["axis"], self.layout.orders[op.output]
        place, item = order.index(axis), 1 if op.output.integer else 4
        outer, inner = (
            int(np.prod([op.output.shape[i] for i in part], dtype=np.int64))
            for part in (order[:place], order[place + 1 :])
        )
        start = 0
        for part in op.inputs:
            target = f"(uint8_t *)(void *)({self.at(op.output)}) + {start * inner * item}"
            sizes = (outer, part.shape[axis] * inner * item, op.output.shape[axis] * inner * item)
            self.calls.append(f"  qd_place({self.at(part)}, {target}, {', '.join(map(str, sizes))});")
            start += part.shape[axis]


def _batch_step(tensor: Tensor, strides: tuple[int, ...]) -> int:
    """Return the distance between two matrices of a tensor."""
    steps = [strides[i] for i in range(len(strides) - 2) if tensor.shape[i] > 1]
    return steps[-1] if steps else 0


def _scratch(layout: Layout, op: Op) -> int:
    """Return the bytes of working memory that an operator's kernel needs."""
    if op.kind == "stream":
        return stages_of(layout, op)[1]
    if op.kind == "matmul" and op.output.integer:
        return product_bytes(op.output.shape[-2], op.output.shape[-1], op.inputs[0].shape[-1])
    if op.kind not in ("conv", "linear"):
        return 0
    fields, size = window(op), taps(op)
    row = fields["padded_width"] * fields["channels"]
    bare = (fields["padded_height"], fields["padded_width"]) == (fields["height"], fields["width"])
    if not op.output.integer:
        return 0 if bare else ((size["rows"] - 1) * size["dilation_y"] + 1) * row * 4
    padded = 0 if bare else fields["padded_height"] * row + 64
    return padded + (0 if is_depthwise(op) else widened_bytes(op))


def number(value: float) -> str:
    """Write a float32 exactly."""
    single = np.float32(value)
    if not np.isfinite(single):
        raise UnsupportedError("graph", f"a constant is {single}")
    return f"{float(single).hex()}f"


def _integer(value: int) -> str:
    return "(-2147483647 - 1)" if value == -(2**31) else str(value)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f".{k} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "{" + ", ".join(_value(v) for v in value) + "}"
    if isinstance(value, (float, np.floating)):
        return number(float(value))
    return str(value)


def _array(kind: str, name: str, texts: list[str], aligned: bool = False) -> str:
    lines = (", ".join(texts[i : i + WRAP]) for i in range(0, len(texts), WRAP))
    before = "QD_ALIGNED " if aligned else ""
    return f"{before}static const {kind} {name}[] = {{\n" + ",\n".join(lines) + "};"


_RUN_HEAD = """
void qdeploy_native_{prefix}run(const qdeploy_native *net, const uint8_t *image, float *logits, float *probabilities) {{
  uint8_t *arena = (uint8_t *)net->arena;
  const qd_kernels *k = (const qd_kernels *)net->kernels;"""
