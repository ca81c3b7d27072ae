"""What libraries say, shortened to its reason: without the places in their own source, codes and advice.

Only texts go in and out, so that nothing of a library need be there. The whole text stays with the error's cause, which
``--traceback`` shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SOURCE = re.compile(r"(?:(?:/|[A-Za-z]:\\)[^\s:]*|\b\w+)\.(?:cc|cpp|h|hpp|cu|cuh):\d+:? ?")
"""A place in the source of a C++ library: ``/onnxruntime_src/onnxruntime/core/graph/model.cc:182``."""
_MARK = re.compile(r"\[ONNXRuntimeError\] : |\b\d+ : [A-Z_]+ : ")
_ORT_FORMS = (
    (r"^Load model from .*? failed: ?", ""),
    (r"Exception during initialization: ", ""),
    (r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: ?", r"node '\2' (\1): "),
    (
        r"This is an invalid model\. In Node, \(\"([^\"]*)\", (\w+), .*? , Error "
        r"(?:Node ?\([^)]*\) (?:with schema\(\S*\) )?)?",
        r"node '\1' (\2): ",
    ),
    (r"Node \(([^)]*)\) Op \((\w+)\) (?:\[\w+Error\] )?", r"node '\1' (\2): "),
    (
        r"(?:This is an invalid model\. )?Type Error: Type '([^']*)' of input parameter \(([^)]*)\) of operator "
        r"\((\w+)\) in node \(([^)]*)\) is invalid\.?",
        r"node '\4' (\3): it does not take \1, the type of '\2'",
    ),
    (
        r"ONNX Runtime only \*guarantees\*.*?Opset (\d+) is.*?domain (\S+) is till opset (\d+)\.",
        r"opset \1 of \2 is newer than \3",
    ),
    (r"(?:^|(?<=: ))[^:]{1,120} was false\.? (?=\S)", ""),
    (r"tensor\((\w+)\)", r"\1"),
    (r" Please fix either the inputs/outputs or the model\.", ""),
)
"""What ONNX Runtime writes around a reason, and what is left of it."""


def onnxruntime_reason(text: str) -> str:
    """Return why ONNX Runtime refuses a graph or a run, on one line."""
    text = _MARK.sub("", " ".join(text.split()))
    while (place := _SOURCE.search(text)) is not None:
        text = text[: place.start()] + _without_signature(text[place.end() :])
    for pattern, kept in _ORT_FORMS:
        text = re.sub(pattern, kept, text)
    return text.strip() or "it says nothing"


def _without_signature(text: str) -> str:
    """Remove the C++ function that a place in the source is followed by: a signature, or its bare name."""
    opening = text.find("(")
    if re.match(r"[^(]*::[^(\s]+\(", text) is None:
        return re.sub(r"^[\w:~]+ ", "", text)
    depth, end = 0, len(text)
    for i, letter in enumerate(text[opening:], opening):
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ")]}" and depth == 0 and not re.match(r">?::|>?\(| \[with ", text[i + 1 :]):
            end = i + 1
            break
    return re.sub(r"^(?: const)? ?", "", text[end:])


_TENSORRT_FORMS = (
    (r".*?Error Code \d+: [\w ]+? \((.*?)(?:\.? In [\w:~]+ at \S+:\d+).*", r"\1"),
    (r"^.*?Assertion failed: .*?&& \"([^\"]*)\".*", r"\1"),
    (r"^.*?Assertion failed: .*?: (?=[A-Z])", ""),
    (r"^\w+ && \"([^\"]*)\".*", r"\1"),
    (r"^Assertion (.*?) failed\. (?=\S)", ""),
    (r"\b\w+\.cpp:\d+:? ?", ""),
)
"""What TensorRT and its parser write around a reason, and what is left of it."""


def tensorrt_reason(text: str) -> str:
    """Return why TensorRT or its parser refuses a graph, on one line."""
    text = " ".join(text.split())
    for pattern, kept in _TENSORRT_FORMS:
        text = re.sub(pattern, kept, text)
    return text.strip() or "it says nothing"


_TORCH_KINDS = {
    "GuardOnDataDependentSymNode": (
        "it branches on the values of its input, which a graph cannot follow",
        "compute both sides and choose with torch.where",
    ),
    "TracerWarning": (
        "it branches on the values of its input, which a graph cannot follow",
        "compute both sides and choose with torch.where",
    ),
    "DataDependentOutputException": (
        "it uses the values of its input as Python numbers, which a graph cannot hold",
        "keep them as tensors",
    ),
    "DynamicOutputShapeException": (
        "the sizes of its tensors depend on the values of its input",
        "use torch.where in place of a selection by a mask",
    ),
    "RecursionError": ("its parts are nested too deeply", ""),
}
_TORCH_TEXTS = (
    (
        re.compile(r"Unsupported attribute type: .*Symbolic"),
        "a setting of one of its operators depends on the number of images, which ONNX fixes",
        "give every image the same operators",
    ),
    (
        re.compile(r"No ONNX function found for <(?:OpOverload\(op='([\w.:]+)'|built-in function (\w+))"),
        r"ONNX has no operator for \1\2",
        "replace it by other operations",
    ),
    (
        re.compile(r"Constraints violated.*?specializ\w+ it to be a constant \((\d+)\)", re.DOTALL),
        r"it takes batches of \1 images only",
        "compute sizes from the input's shape",
    ),
)


def torch_reason(kinds: Sequence[str], text: str) -> tuple[str, str]:
    """Return why torch or its exporter raised an error, on one line, and what to do about it where that is known.

    Args:
        kinds: Names of the errors' classes, outermost first.
        text: What the error says.
    """
    for kind in reversed(kinds):
        if kind in _TORCH_KINDS:
            return _TORCH_KINDS[kind]
    for pattern, reason, fix in _TORCH_TEXTS:
        found = pattern.search(text)
        if found:
            return found.expand(reason), fix
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Traceback", "File ", "The following operation"))]
    return (said[0] if said else "it says nothing"), ""
