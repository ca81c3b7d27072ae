"""Functions that a file brings with it, written out where they are called."""

from __future__ import annotations

import onnx
import onnx.defs
import onnx.inliner

from qdeploy.core.errors import InputError, one_line
from qdeploy.export.graph.walk import STANDARD


def without_functions(model: onnx.ModelProto, name: str = "the graph") -> onnx.ModelProto:
    """Return a model without functions of its own.

    Args:
        model: Any model; it stays as it is.
        name: What it is called in an error.

    Raises:
        InputError: If they call each other in a circle, or one has the name of an operator of ONNX itself: onnx calls
            the function then, and ONNX Runtime the operator.
    """
    if not model.functions:
        return model
    opset = max((o.version for o in model.opset_import if o.domain in STANDARD), default=1)
    for function in model.functions:
        if function.domain in STANDARD and onnx.defs.has(function.name, max_inclusive_version=opset):
            raise InputError(
                f"a function of {name} is called {function.name}, as an operator of ONNX itself",
                fix="export it again with the function in a domain of its own",
            )
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # whatever onnx's inliner raises from C++
        raise InputError(f"the functions of {name} cannot be written out: {one_line(error)}") from error
