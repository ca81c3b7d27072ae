"""A copy of a user's module that can be run and traced; the module itself is left as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from qdeploy.core.errors import InputError
from qdeploy.export.sources.torch_reason import named, refusal

OBSERVING = ("torch.ao.quantization.observer", "torch.ao.quantization.fake_quantize")
"""Where torch keeps what it puts into a module to quantize it later."""
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def own_copy(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU in evaluation mode, out of what compiles it or spreads it over devices.

    Raises:
        InputError: If it is no module, has no weights, or some that are quantized, not there or not finite, or it
            cannot be copied.
    """
    _require_module(module)
    inside = _unwrapped(module)
    try:
        _require_weights(inside)
        with torch.no_grad():  # else the weights of a copied ScriptModule are results of a computation
            made = copy.deepcopy(inside, {id(t): t.detach().clone() for t in _computed(inside)})
        _unwrap_parts(made)
        return made.cpu().eval()
    except InputError:
        raise
    except Exception as error:  # whatever the parts of a module raise when they are copied
        raise refusal("the module cannot be copied", error, inside) from error


def _require_module(given: object) -> None:
    """Refuse what is no module, such as the dictionary of its weights, with the way to it."""
    if isinstance(given, nn.Module):
        return
    found, fix = type(given).__name__, "give the model itself"
    if isinstance(given, Mapping):
        holding = next((key for key, value in given.items() if isinstance(value, nn.Module)), None)
        weights = any(isinstance(value, torch.Tensor) for value in given.values())
        found = "a state_dict" if weights else f"a dictionary of {', '.join(map(str, list(given)[:4])) or 'nothing'}"
        fix = "build the model and give it these weights with its method load_state_dict"
        fix = fix if holding is None else f"give its entry {holding!r}"
    elif isinstance(given, type):
        found, fix = f"the class {given.__name__}", f"give a trained instance of it, as `{given.__name__}()`"
    elif isinstance(given, torch.export.ExportedProgram):
        fix = "give its `module()`"
    raise InputError("the module must be a torch.nn.Module", found=found, fix=fix)


def class_name(module: nn.Module) -> str:
    """Return the name of the user's class, also of a compiled, data-parallel or scripted module."""
    inside = _unwrapped(module)
    return str(inside.original_name if isinstance(inside, torch.jit.ScriptModule) else type(inside).__name__)


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the user's own module inside what torch.compile or data-parallel training puts around it."""
    while True:
        inside = module.module if isinstance(module, WRAPPERS) else getattr(module, "_orig_mod", None)
        if not isinstance(inside, nn.Module):
            return module
        module = inside


def _unwrap_parts(module: nn.Module) -> None:
    for part in list(module.modules()):
        if isinstance(part, torch.jit.ScriptModule):
            continue
        part._compiled_call_impl = None  # what part.compile() sets
        for name, child in list(part.named_children()):
            if (inside := _unwrapped(child)) is not child:
                setattr(part, name, inside)


def _computed(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors kept in a module that are results of computations: torch refuses to copy these as they are.

    Weight normalisation in its older form keeps such weights, and so does whoever stores a feature map.
    """
    todo: list[object] = [vars(m) for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, (list, tuple)):
            todo += value


def _require_weights(module: nn.Module) -> None:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not tensors and not isinstance(module, torch.jit.ScriptModule):  # a frozen one holds constants
        raise InputError("the module has no parameters: there is nothing to export")
    parts = dict(module.named_modules())
    for path, tensor in tensors.items():
        parent = path.rpartition(".")[0]
        owner = named(parent, parts[parent])
        if is_lazy(tensor):
            raise InputError(f"{owner} has no weights yet", fix="run the module on images once, and train it")
        if tensor.is_meta:
            raise InputError(f"'{path}' of {owner} has no values (device meta)", fix="load the module's weights")
        if tensor.is_quantized:
            raise InputError(f"{owner} is quantized already", fix="give the float module that it was made from")
        if isinstance(tensor, nn.Parameter) and not torch.isfinite(tensor).all():  # a mask may hold -inf
            raise InputError(f"the weights '{path}' of the module hold values that are not finite")
    for path, part in parts.items():
        if type(part).__module__.startswith(OBSERVING):
            raise InputError(
                f"the module is prepared for torch's own quantization ({named(path, part)})",
                fix="give the float module that it was made from",
            )
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise InputError(f"{named(path, part)} is quantized already", fix="give the float module it was made from")
