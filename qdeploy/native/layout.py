"""The pass that says how tensors lie in memory: the order of their axes, and which of them share their values.

Images lie channels last, so that the channels of a pixel follow each other; a transpose is then only another order,
and costs nothing until something needs the values in one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qdeploy.native.ir import Op, Program, Tensor

Order = tuple[int, ...]
CHANNELS_LAST: Order = (0, 2, 3, 1)
LAST_AXIS = ("softmax", "layernorm", "linear")
"""Kinds that need the last axis innermost."""
ELEMENTWISE = ("quantize", "dequantize", "table", "tables", "unary", "add", "sub", "mul", "div")


@dataclass
class Layout:
    """A program with copies where an operator needs another order, and each tensor's place."""

    program: Program
    orders: dict[Tensor, Order]
    """Axes from the outermost to the innermost in memory."""
    shared: dict[Tensor, tuple[Tensor, int]] = field(default_factory=dict)
    """Tensors that are in another's memory, and the offset there in values."""

    def root(self, tensor: Tensor) -> tuple[Tensor, int]:
        """Return the tensor whose memory holds one's values, and the offset in values."""
        offset = 0
        while tensor in self.shared:
            tensor, more = self.shared[tensor]
            offset += more
        return tensor, offset

    def strides(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the distance in values between neighbours along each axis."""
        order = self.orders[tensor]
        found = [0] * len(order)
        step = 1
        for axis in reversed(order):
            found[axis] = step
            step *= tensor.shape[axis]
        return tuple(found)


def lay_out(program: Program) -> Layout:
    """Choose orders, insert copies, and let moves share memory."""
    return _Placer(program).run()


def plain(rank: int) -> Order:
    """Return the order of axes as they are named."""
    return tuple(range(rank))


def same_order(shape: tuple[int, ...], a: Order, b: Order) -> bool:
    """Tell whether two orders lay values out alike; axes of one value do not matter."""
    return [i for i in a if shape[i] > 1] == [i for i in b if shape[i] > 1]


class _Placer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.ops: list[Op] = []
        self.layout = Layout(program, {program.image: plain(4)})
        self.orders = self.layout.orders
        self._copies: dict[tuple[Tensor, Order], Tensor] = {}

    def run(self) -> Layout:
        for op in self.program.ops:
            for t in op.inputs:
                if t.data is not None:
                    self.orders[t] = plain(len(t.shape))
            self._place(op)
        outputs = [self._in_order(t, plain(len(t.shape))) for t in self.program.outputs]
        self.layout.program = Program(self.ops, self.program.image, *outputs)
        return self.layout

    def _place(self, op: Op) -> None:
        if op.kind == "reshape":
            self._reshape(op)
        elif op.kind == "transpose":
            self._transpose(op)
        elif op.kind == "slice":
            self._slice(op)
        elif op.kind in ELEMENTWISE:
            widest = next((t for t in op.inputs if t.shape == op.output.shape and t.data is None), None)
            self._keep(op, op.inputs, self.orders[widest] if widest else plain(len(op.output.shape)))
        elif op.kind in ("conv", "maxpool"):
            self._keep(op, [self._source(op, CHANNELS_LAST)], CHANNELS_LAST)
        elif op.kind in LAST_AXIS:
            self._keep(op, [self._source(op, plain(len(op.inputs[0].shape)))], plain(len(op.output.shape)))
        elif op.kind == "matmul":
            self._matmul(op)
        elif op.kind in ("pick", "topk"):
            self._keep(op, [self._in_order(t, plain(len(t.shape))) for t in op.inputs], plain(len(op.output.shape)))
        elif op.kind == "concat":
            orders = [self.orders[t] for t in op.inputs]
            order = CHANNELS_LAST if CHANNELS_LAST in orders else orders[0]
            self._keep(op, [self._in_order(t, order) for t in op.inputs], order)
        else:
            self._mean(op)

    def _keep(self, op: Op, inputs: list[Tensor], order: Order) -> None:
        self.orders[op.output] = order
        self.ops.append(Op(op.kind, inputs, op.output, op.attributes))

    def _in_order(self, tensor: Tensor, order: Order) -> Tensor:
        """Return a tensor whose values lie in an order: itself, or a copy."""
        if same_order(tensor.shape, self.orders[tensor], order):
            return tensor
        return self._copied(tensor, order)

    def _source(self, op: Op, order: Order) -> Tensor:
        """Return what an operator reads, in an order.

        Integer kernels read up to three bytes behind a tensor without pads. The arena has them; the caller's image,
        which may be the very same memory as the tensor, does not, and is copied.
        """
        source = self._in_order(op.inputs[0], order)
        beyond = op.kind in ("conv", "linear") and op.output.integer and not any(op.attributes.get("pads", ()))
        callers = self.layout.root(source)[0] is self.program.image
        return self._copied(source, order) if beyond and callers else source

    def _copied(self, tensor: Tensor, order: Order) -> Tensor:
        key = (tensor, order)
        if key not in self._copies:
            ordered = "".join(map(str, order))
            copy = Tensor(f"{tensor.name}/{ordered}", tensor.shape, tensor.scale, tensor.zero)
            self.orders[copy] = order
            self.ops.append(Op("copy", [tensor], copy))
            self._copies[key] = copy
        return self._copies[key]

    def _share(self, op: Op, source: Tensor, order: Order, offset: int = 0) -> None:
        self.orders[op.output] = order
        self.layout.shared[op.output] = (source, offset)
        self.ops.append(Op("view", [source], op.output))

    def _reshape(self, op: Op) -> None:
        (source,), target = op.inputs, op.output
        if source.shape == target.shape:
            self._share(op, source, self.orders[source])
            return
        self._share(op, self._in_order(source, plain(len(source.shape))), plain(len(target.shape)))

    def _transpose(self, op: Op) -> None:
        (source,), perm = op.inputs, op.attributes["perm"]
        self._share(op, source, tuple(perm.index(axis) for axis in self.orders[source]))

    def _slice(self, op: Op) -> None:
        """A part along the outermost axis lies in its source as it is; another is copied."""
        (source,), spans = op.inputs, op.attributes["spans"]
        order = self.orders[source]
        axes = [i for i, side in enumerate(source.shape) if op.output.shape[i] != side]
        outer = next((i for i in order if source.shape[i] > 1), 0)
        if not axes:
            self._share(op, source, order)
        elif axes == [outer] and spans[outer][2] == 1:
            self._share(op, source, order, spans[outer][0] * self.layout.strides(source)[outer])
        else:
            offset = sum(start * step for (start, _, _), step in zip(spans, self.layout.strides(source), strict=True))
            self.orders[op.output] = order
            steps = tuple(step for _, _, step in spans)
            self.ops.append(Op("copy", [source], op.output, {"offset": offset, "steps": steps}))

    def _matmul(self, op: Op) -> None:
        """The second matrix lies with its columns innermost; else (B' A')' may be the one that copies less."""
        a, b = op.inputs
        rank = len(a.shape)
        swapped = [self._turned(t) for t in (b, a)]
        plainly, turned = ((self._cost(x) + self._cost(y, columns=True)) for x, y in ((a, b), swapped))
        inputs = [a, b] if plainly <= turned else swapped
        ready = [self._batched(t) and (i == 0 or self.layout.strides(t)[-1] == 1) for i, t in enumerate(inputs)]
        inputs = [t if fits else self._in_order(t, plain(rank)) for t, fits in zip(inputs, ready, strict=True)]
        if plainly <= turned:
            self._keep(op, inputs, plain(rank))
            return
        output = op.output
        shape = (*output.shape[:-2], output.shape[-1], output.shape[-2])
        made = Tensor(f"{output.name}/turned", shape, output.scale, output.zero)
        self._keep(Op("matmul", inputs, made, op.attributes), inputs, plain(rank))
        self._share(Op("view", [made], output), made, (*range(rank - 2), rank - 1, rank - 2))

    def _turned(self, tensor: Tensor) -> Tensor:
        """Return a tensor with its last two axes exchanged, in the same memory."""
        rank = len(tensor.shape)
        perm = [*range(rank - 2), rank - 1, rank - 2]
        view = Tensor(f"{tensor.name}/turned", tuple(tensor.shape[i] for i in perm), tensor.scale, tensor.zero)
        self.orders[view] = tuple(perm.index(axis) for axis in self.orders[tensor])
        self.layout.shared[view] = (tensor, 0)
        return view

    def _cost(self, tensor: Tensor, columns: bool = False) -> int:
        """Return the bytes that must be copied for a product to take a matrix; ``columns``: they must be innermost."""
        fits = self._batched(tensor) and (not columns or self.layout.strides(tensor)[-1] == 1)
        return 0 if fits else tensor.size_bytes

    def _batched(self, tensor: Tensor) -> bool:
        """Tell whether the axes before the last two are one run of matrices."""
        order, rank = self.orders[tensor], len(tensor.shape)
        big = [i for i in order if tensor.shape[i] > 1]
        outer = [i for i in big if i < rank - 2]
        return big[: len(outer)] == outer == sorted(outer)

    def _mean(self, op: Op) -> None:
        """A mean keeps its source's order if what is averaged is one run of values there."""
        (source,), axes = op.inputs, op.attributes["axes"]
        order, shape = self.orders[source], source.shape
        big = [i for i in order if shape[i] > 1]
        reduced = [k for k, i in enumerate(big) if i in axes]
        together = reduced == list(range(reduced[0], reduced[0] + len(reduced))) if reduced else True
        ascending = [big[k] for k in reduced] == sorted(big[k] for k in reduced)
        innermost = axes != (len(shape) - 1,) or not reduced or reduced[-1] == len(big) - 1
        if not (together and ascending and innermost):
            source = self._in_order(source, plain(len(shape)))
            order = self.orders[source]
        kept = [i for i in order if i not in axes]
        if len(op.output.shape) == len(shape):
            target: Order = order
        else:
            numbers = {axis: k for k, axis in enumerate(sorted(kept))}
            target = tuple(numbers[i] for i in kept)
        self._keep(op, [source], target)
