"""What holds the C of a program while it is written: constants, weights as one blob, and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.native.ir import Op, Tensor
from qdeploy.native.layout import Layout
from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.memory import Arena

Array = NDArray[Any]
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
    operators: list[Op] = field(repr=False, default_factory=list)
    """The operator of every call in the order of the calls, for profiles."""


class Writer:
    """Writes the C of a program, operator by operator."""

    def __init__(
        self,
        layout: Layout,
        arena: Arena,
        calls: Mapping[str, Callable[[Writer, Op], None]],
        prefix: str = "",
        texts: bool = True,
    ) -> None:
        """Start.

        Args:
            layout: The program.
            arena: Where its tensors lie.
            calls: What writes the operators of each kind.
            prefix: What the names of the constants begin with.
            texts: Whether constants are written; else they are counted.
        """
        self._calls = calls
        self.layout, self.arena, self.prefix, self.texts = layout, arena, prefix, texts
        self.constants: list[str] = []
        self.calls: list[str] = []
        self.blob = bytearray()
        self.constant_bytes = 0
        self._named: dict[Tensor, str] = {}
        self._elsewhere: dict[Tensor, str] = {}
        self._operators: list[Op] = []

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
        return Source(text, self.arena.size_bytes, self.constant_bytes, places, self._operators)

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
        del self._operators[before:]
        return "\n".join(made)

    def struct(self, kind: str, fields: Mapping[str, Any]) -> str:
        """Add a constant structure and return its address."""
        name = self.named("p")
        inside = ", ".join(f".{k} = {_value(v)}" for k, v in fields.items())
        self.constants.append(f"static const {kind} {name} = {{{inside}}};")
        return f"&{name}"

    def call(self, op: Op) -> None:
        """Write one operator."""
        if op.kind != "view":
            self._calls[op.kind](self, op)
            self._operators += [op] * (len(self.calls) - len(self._operators))

    def line(self, kernel: str, *arguments: object) -> None:
        """Add the call of a kernel of the tier."""
        self.calls.append(f"  k->{kernel}({', '.join(map(str, arguments))});")

    def scratch_of(self, op: Op) -> str:
        """Return the address of an operator's working memory."""
        return f"arena + {self.arena.scratch[op]}" if op in self.arena.scratch else "NULL"

    def in_blob(self, weights: Array) -> str:
        """Add int8 weights to the blob and return their address."""
        at = len(self.blob)
        self.blob += np.ascontiguousarray(weights).astype(np.int8).tobytes()
        self.blob += bytes(-len(self.blob) % 64)
        return f"{self.prefix}weights + {at // 8}"


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
