"""The compiler's intermediate representation: operators on tensors of codes (u8) or of floats (f32), for one image.

Written form (``str(program)``), one operator a line::

    program  := line*
    line     := tensor "=" kind "(" tensor-name ("," tensor-name)* ")" attribute*
    tensor   := name ":" type
    type     := "u8[" shape "]*" scale "@" zero  |  "f32[" shape "]"
    shape    := side ("," side)*

A code c of a u8 tensor stands for (c - zero) * scale. int8 tensors of a file become u8 here, codes and zero point
raised by 128: the same numbers. Shapes are those of ONNX, the batch being one image. Whether an operator computes on
integers or floats is the type of its output; what each kind computes is said by ``simulate``, to the last bit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

KINDS = (
    "quantize",  # floats to codes
    "dequantize",  # codes to floats
    "table",  # codes to codes, 256 entries
    "tables",  # the same with entries of its own for each place along ``axis``
    "conv",
    "linear",  # times a constant matrix
    "matmul",
    "add",
    "sub",  # floats only
    "mul",
    "div",  # floats only
    "unary",  # floats only; ``function`` says which
    "concat",
    "mean",
    "maxpool",
    "softmax",
    "layernorm",  # floats only
    "reshape",
    "transpose",
    "slice",
    "pick",  # slices along an axis, at places that the second input says in floats
    "topk",  # floats only; the places of the largest values in their order, the first of equal ones first
)
MOVES = ("reshape", "transpose", "slice")
"""Kinds that only move values, of either type."""


@dataclass(eq=False)
class Tensor:
    """What an operator reads or makes."""

    name: str
    shape: tuple[int, ...]
    scale: float | None = None
    """Value of one step of the codes, a float32; None: the tensor holds floats."""
    zero: int = 0
    """The code of zero."""
    data: Array | None = field(default=None, repr=False)
    """Values of a constant."""

    @property
    def integer(self) -> bool:
        """Whether it holds codes."""
        return self.scale is not None

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of memory."""
        return self.size * (1 if self.integer else 4)

    def __str__(self) -> str:
        sides = ",".join(map(str, self.shape))
        return f"{self.name}:" + (f"u8[{sides}]*{self.scale:.9g}@{self.zero}" if self.integer else f"f32[{sides}]")


@dataclass(eq=False)
class Op:
    """One operator; ``attributes`` are integers, texts, tuples and arrays."""

    kind: str
    inputs: list[Tensor]
    output: Tensor
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        plain = {k: v for k, v in self.attributes.items() if not isinstance(v, np.ndarray)}
        said = "".join(f" {k}={v}" for k, v in plain.items())
        return f"{self.output} = {self.kind}({', '.join(t.name for t in self.inputs)}){said}"


@dataclass
class Program:
    """A whole model for one image."""

    ops: list[Op]
    image: Tensor
    logits: Tensor
    probabilities: Tensor

    @property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """Logits and probabilities."""
        return self.logits, self.probabilities

    def readers(self) -> Counter[Tensor]:
        """Count how often each tensor is read; being an output counts, too."""
        return Counter([*(t for op in self.ops for t in op.inputs), *self.outputs])

    def __str__(self) -> str:
        return "\n".join(map(str, self.ops))
