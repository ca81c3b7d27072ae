"""What torch and its exporter say, shortened to the place inside a module and the reason."""

from __future__ import annotations

import copy
import itertools
import linecache
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import onnx
import torch
from torch import nn

import qdeploy
from qdeploy.core.errors import InputError, one_line
from qdeploy.core.reasons import torch_reason

LONGEST = 160
"""Characters of a reason."""
EXPORTER = find_spec("onnxscript")
"""Found and not imported: half a second that an export whose graph is kept does not need."""
if EXPORTER is None or EXPORTER.origin is None:
    raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
NOT_THEIRS = tuple(
    str(Path(p).parent) for p in (torch.__file__, qdeploy.__file__, EXPORTER.origin, onnx.__file__, copy.__file__)
)
"""Folders of files that are none of the user's: those of torch, ours, of the exporter, of Python."""


def refusal(what: str, error: BaseException, model: nn.Module, fix: str = "") -> InputError:
    """Return what refuses a module because torch raised an error in it; the error itself is its cause.

    Args:
        what: What could not be done.
        error: What torch raised.
        model: The module, whose parts are named.
        fix: What to do next; by default what is known of the reason.
    """
    causes = list(_causes(error))
    inner = next((c for c in causes if not isinstance(c, torch.onnx.OnnxExporterError)), causes[-1])
    reason, known_fix = torch_reason([type(c).__name__ for c in causes], str(inner) or type(inner).__name__)
    try:
        place, line = place_of(error, model) or named("", model), _line_of(error)
    except RecursionError:
        place, line = named("", model), ""
    short = one_line(ValueError(reason), LONGEST)
    return InputError(f"{what}: {place}: {short}{line}", fix=fix or known_fix)


def place_of(error: BaseException, model: nn.Module) -> str:
    """Return class and path of the innermost part of a module that an error passed through, or an empty text."""
    paths = {id(part): path for path, part in model.named_modules()}
    for cause in reversed(list(_causes(error))):
        owners = [_owner(trace) for trace in _frames(cause.__traceback__)]
        for owner in reversed(owners):
            if owner is not None and id(owner) in paths:
                return named(paths[id(owner)], owner)
    return ""


SHOWN = 40
"""Characters at either end of a part's path."""


def named(path: str, part: nn.Module) -> str:
    """Return how a part of a module is called in a message; of a long path the beginning and the end."""
    kind = getattr(part, "original_name", type(part).__name__)  # of TorchScript
    if len(path) > 2 * SHOWN:
        path = f"{path[:SHOWN]}...{path[-SHOWN:]}"
    return f"{kind} '{path}'" if path else str(kind)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _owner(trace: TracebackType) -> nn.Module | None:
    """Return the module whose method a frame is, or None."""
    code = trace.tb_frame.f_code
    first = trace.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    return first if isinstance(first, nn.Module) else None


def _line_of(error: BaseException) -> str:
    """Return the user's own line that an error passed through last, in brackets, or an empty text."""
    for cause in reversed(list(_causes(error))):
        for trace in reversed(list(_frames(cause.__traceback__))):
            file = trace.tb_frame.f_code.co_filename
            line = linecache.getline(file, trace.tb_lineno).strip()
            if line and not file.startswith(NOT_THEIRS):
                return _cited(file, trace.tb_lineno, line)
        told = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)', str(cause))
        for file, number, line in reversed(told):
            if not file.startswith(NOT_THEIRS):
                return _cited(file, int(number), line)
    return ""


def _cited(file: str, number: int, line: str) -> str:
    return f" ({Path(file).name}, line {number}: {one_line(ValueError(line), 80)})"


def first_difference(
    model: nn.Module, first: torch.Tensor, second: torch.Tensor, tolerance: float
) -> tuple[str, nn.Module] | None:
    """Return the first part, in the order in which they end, whose answers differ although its inputs do not.

    Args:
        model: What is run, twice.
        first: Images of the first run.
        second: Images of the second, of which the first images are compared.
        tolerance: Largest difference that counts as none, relative to the largest value.
    """
    runs = [_recorded(model, images) for images in (first, second)]
    count = min(len(first), len(second))
    for (part, taken, given), (other, taken_again, given_again) in zip(*runs, strict=False):
        if part is not other:
            continue
        same_in = all(_same(a, b, count, tolerance) for a, b in itertools.zip_longest(taken, taken_again))
        if same_in and not all(_same(a, b, count, tolerance) for a, b in itertools.zip_longest(given, given_again)):
            return next((path, p) for path, p in model.named_modules() if p is part)
    return None


def first_not_finite(model: nn.Module, images: torch.Tensor) -> tuple[str, nn.Module] | None:
    """Return the first part, in the order in which they end, that makes infinite values or NaN of finite ones."""
    for part, taken, given in _recorded(model, images):
        if all(map(_finite, taken)) and not all(map(_finite, given)):
            return next((path, p) for path, p in model.named_modules() if p is part)
    return None


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


Record = tuple[nn.Module, list[torch.Tensor], list[torch.Tensor]]


def _recorded(model: nn.Module, images: torch.Tensor) -> list[Record]:
    """Run a module, and return what each part took and gave, in the order in which they end."""
    records: list[Record] = []
    taken: dict[int, list[list[torch.Tensor]]] = {}

    def before(part: nn.Module, values: object) -> None:
        taken.setdefault(id(part), []).append(_tensors(values))

    def after(part: nn.Module, _: object, values: object) -> None:
        records.append((part, taken[id(part)].pop(), _tensors(values)))

    parts = [part for part in model.modules() if not isinstance(part, torch.jit.ScriptModule)]
    hooks = [hook for p in parts for hook in (p.register_forward_pre_hook(before), p.register_forward_hook(after))]
    try:
        with torch.no_grad():
            model(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return records


def _tensors(values: object) -> list[torch.Tensor]:
    """Return copies of the tensors in what a module takes or gives."""
    if isinstance(values, torch.Tensor):
        return [values.detach().clone()]
    inside = list(values.values()) if isinstance(values, dict) else values
    return [t for v in inside for t in _tensors(v)] if isinstance(inside, (list, tuple)) else []


def _same(a: torch.Tensor | None, b: torch.Tensor | None, count: int, tolerance: float) -> bool:
    """Tell whether two tensors agree: whole, or in their first images where they hold different numbers of these."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape:
        if a.dim() == 0 or b.dim() == 0 or a.shape[1:] != b.shape[1:]:
            return False
        a, b = a[:count], b[:count]
    return agree(a, b, tolerance)


def agree(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """Tell whether two tensors of one shape differ by rounding at most; NaN agrees with NaN."""
    return (
        torch.allclose(
            a.double(),
            b.double(),
            rtol=0,
            atol=tolerance * max(1.0, float(b.double().abs().nan_to_num().max())),
            equal_nan=True,
        )
        if a.numel()
        else True
    )
