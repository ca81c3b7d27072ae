"""Which runtimes will take an ONNX graph, which will run it slowly or wrongly, and why: told before any build."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper

from qdeploy.core.errors import ArtifactError, InputError, one_line
from qdeploy.core.file_kind import kind_of
from qdeploy.export.graph.size import MAX_BYTES, needs_trial, outside_bytes
from qdeploy.export.int8.encodings import RUNTIMES
from qdeploy.export.lint.find import CONTRIB_Q_OPERATORS, DYNAMIC, Q_OPERATORS
from qdeploy.export.lint.graph import DEQUANTIZE, QUANTIZE, Graph
from qdeploy.export.lint.rules import ALL, CORTEX_M, ORT, RULES
from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.source import memory_of_program, program_from
from qdeploy.runtime.engines.onnxruntime_binding import VERSION, open_binding
from qdeploy.runtime.engines.onnxruntime_options import OnnxRuntimeError
from qdeploy.runtime.trial import require_bounded_file

SUPPORT = ("ok", "slow", "wrong", "refused")
"""From the best to the worst."""
LARGER_THAN_2_GIB = "larger-than-2-gib"
"""The finding about a graph whose weights were not read."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule that applies."""

    rule: str
    severity: str
    """refused, wrong, slow, or note, which changes nothing."""
    runtimes: tuple[str, ...]
    places: int
    """How many nodes it concerns."""
    first: str
    """Name of the first of them."""
    why: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """What was found in a graph."""

    opset: int
    nodes: int
    quantized: bool
    support: dict[str, str]
    """For each of ``RUNTIMES``: ok (nothing known against it), slow, wrong or refused."""
    findings: tuple[Finding, ...]
    """The worst first."""

    def findings_for(self, runtime: str) -> tuple[Finding, ...]:
        """Return the findings that concern a runtime."""
        return tuple(f for f in self.findings if runtime in f.runtimes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def lint_file(path: Path | str) -> LintReport:
    """Judge an ONNX file, made by qdeploy or by others.

    Raises:
        InputError: If there is no such file, it is not ONNX, or data that it keeps in other files are missing.
    """
    path = Path(path)
    model = _read(path)
    outside = Graph(model).external
    if not outside:
        if needs_trial(model):
            require_bounded_file(path, model.ByteSize())
        return lint(model)
    size = outside_bytes(model) + path.stat().st_size
    if size > MAX_BYTES:
        return _report(model, [_external(outside), _too_large(size)])
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise InputError(
            f"{path} keeps weights in another file that cannot be read ({one_line(error)}); put that file beside it"
        ) from error
    if needs_trial(model):
        require_bounded_file(path, size)
    return _report(model, [_external(outside)])


def lint(model: onnx.ModelProto) -> LintReport:
    """Judge a graph by its structure, and open it once in ONNX Runtime.

    ``ok`` means that nothing is known against a runtime; only a build proves that it takes the graph.

    Raises:
        InputError: If the model has no opset, so that it is no ONNX graph.
    """
    outside = Graph(model).external
    return _report(model, [_external(outside)] if outside else [])


def _report(model: onnx.ModelProto, findings: list[Finding]) -> LintReport:
    graph = Graph(model)
    if not graph.opset:
        raise InputError("this is no ONNX graph: it names no opset; give an exported .onnx file")
    if any(len(n.input) < 2 for n in graph.of(QUANTIZE, DEQUANTIZE)):
        raise InputError("this is no valid ONNX graph: a Q or DQ node has no scale; export it again")
    for rule in RULES:
        places = list(dict.fromkeys(rule.find(graph)))
        if places:
            findings.append(_finding(rule.id, rule.severity, rule.runtimes, places, rule.why, rule.fix))
    quantized = any(graph.of(QUANTIZE, DEQUANTIZE, *Q_OPERATORS, *CONTRIB_Q_OPERATORS, *DYNAMIC))
    whole = not graph.external and model.ByteSize() <= MAX_BYTES
    findings += _opened(model, whole)
    if whole:
        findings += _compiled(model, quantized)
    findings.sort(key=lambda f: -_rank(f.severity))
    return LintReport(
        opset=graph.opset,
        nodes=len(graph.nodes),
        quantized=quantized,
        support={r: SUPPORT[max([0, *(_rank(f.severity) for f in findings if r in f.runtimes)])] for r in RUNTIMES},
        findings=tuple(findings),
    )


def _rank(severity: str) -> int:
    return SUPPORT.index(severity) if severity in SUPPORT else 0


def _finding(rule: str, severity: str, runtimes: tuple[str, ...], places: Iterable[str], why: str, fix: str) -> Finding:
    names = list(places)
    return Finding(rule=rule, severity=severity, runtimes=runtimes, places=len(names), first=names[0], why=why, fix=fix)


def _external(tensors: list[str]) -> Finding:
    return _finding(
        "external-data",
        "note",
        ALL,
        tensors,
        "The weights are in another file, without which the graph cannot be opened.",
        "copy both files to the device, or save it as one: onnx.save(onnx.load(FILE), OTHER)",
    )


def _too_large(size: int) -> Finding:
    return _finding(
        LARGER_THAN_2_GIB,
        "note",
        ALL,
        ["the whole graph"],
        f"With its weights the graph takes {size / 2**30:.1f} GiB, and one ONNX file can hold 2: its weights were not "
        "read, and ONNX Runtime did not open it.",
        "make the model smaller, or keep its weights in the other file; qdeploy exports single files",
    )


def _opened(model: onnx.ModelProto, whole: bool) -> list[Finding]:
    """Open the graph in the installed ONNX Runtime: what it refuses here, it refuses on every CPU."""
    version = f"ONNX Runtime {VERSION}"
    if _refusal(_smallest(model)):
        opset = max((o.version for o in model.opset_import if not o.domain), default=0)
        text = f"{version} knows neither opset {opset} with IR version {model.ir_version} nor newer ones."
        fix = "export with an older opset (qdeploy writes opset 20), or install a newer onnxruntime"
        return [_finding("newer-than-onnxruntime", "refused", ORT, ["the whole graph"], text, fix)]
    reason = _refusal(model) if whole else ""
    if not reason:
        return []
    fix = "replace what the message names; ONNX Runtime lists its operators and types in OperatorKernels.md"
    text = f"{version} does not open the graph: {reason}"
    return [_finding("onnxruntime-refuses", "refused", ORT, ["the whole graph"], text, fix)]


def _compiled(model: onnx.ModelProto, quantized: bool) -> list[Finding]:
    """Compile the graph to a program of C, as ``qdeploy export --kit native`` does."""
    try:
        program = program_from(model.SerializeToString(), _image_size(model))
        memory_of_program(program)  # which lays it out, and refuses what no kernel takes
    except ArtifactError as error:
        reason = f"{error.kind}: {error.why}" if isinstance(error, UnsupportedError) else error.what
        fix = "give a file that `qdeploy adopt` or `qdeploy export` wrote, or replace what the message names"
        text = f"The native C does not take it: {reason}."
        return [_finding("native-refuses", "refused", (CORTEX_M,), ["the whole graph"], text, fix)]
    layers = [op for op in program.ops if op.kind in ("conv", "linear", "matmul")]
    floats = [op.output.name for op in layers if not all(t.integer for t in op.inputs)]
    if not (quantized and floats):
        return []
    text = "These layers compute in float, and their weights take four bytes each of the flash."
    fix = "export with `int8`, `target=cortex-m` and `float_layers=none`"
    return [_finding("float-layers", "note", (CORTEX_M,), floats, text, fix)]


def _image_size(model: onnx.ModelProto) -> int:
    """Return the height that the graph's input says as ``[N, S, S, 3]``.

    Raises:
        UnsupportedError: If it says none.
    """
    for value in model.graph.input:
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if len(sizes) == 4 and sizes[1] == sizes[2] > 0 and sizes[3] == 3:
            return sizes[1]
    raise UnsupportedError("graph", "no input is images of a fixed size, [N, S, S, 3]")


def _refusal(model: onnx.ModelProto) -> str:
    """Return the reason why ONNX Runtime does not open a model; empty if it does."""
    try:
        open_binding(model.SerializeToString(), threads=1)
    except OnnxRuntimeError as error:
        return str(error).rpartition("[ONNXRuntimeError] : ")[2]  # without the code in front
    return ""


def _smallest(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of one node with the opset and IR version of another."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "one",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    standard = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return onnx.helper.make_model(graph, opset_imports=standard, ir_version=model.ir_version)


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is a device or pipe" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; give an ONNX file")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"{path} holds {path.stat().st_size / 2**30:.1f} GiB, and one ONNX file can hold 2 GiB",
            fix="export it with its weights in a second file",
        )
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        kind = kind_of(data) or ("no ONNX file", "give an exported .onnx file")
        raise InputError(f"{path} is {kind[0]}", fix=kind[1]) from error
    if not model.opset_import:
        kind = kind_of(data) or ("no ONNX file: it names no opset", "give an exported .onnx file")
        raise InputError(f"{path} is {kind[0]}", fix=kind[1])
    return model
