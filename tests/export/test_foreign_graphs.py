"""Graphs as other people's tools write them, from the file to INT8: right answers, or one line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from qdeploy.cli.main import run
from qdeploy.core.errors import InputError
from qdeploy.core.metrics import Floats, sqnr_db
from qdeploy.data.dataset import Split
from qdeploy.export.int8.bias_correction import biases_of, channel_means, correct_biases
from qdeploy.export.int8.calibrate import calibrate
from qdeploy.export.int8.encodings import encoding_for
from qdeploy.export.int8.layers import layer_table
from qdeploy.export.int8.quantize import quantize
from qdeploy.export.int8.step import require_layers
from qdeploy.export.lint.report import lint_file
from qdeploy.export.sources.onnx_file import onnx_source
from qdeploy.runtime.engines.onnxruntime_binding import open_binding
from tests.foreign import foreign_graphs
from tests.foreign.build import SIZE, Foreign, pixels
from tests.ort_session import plain_session

EVERY = list(foreign_graphs())
TAKEN = [g for g in EVERY if g.expected != "refused"]
REFUSED = [g for g in EVERY if g.expected == "refused"]
PIXELS = pixels()
SPLIT = Split(pixels=PIXELS, labels=np.zeros(len(PIXELS), np.int64), hashes=tuple(map(str, range(len(PIXELS)))))
QUICK = 9
"""Every ninth graph is in the default suite."""


def named(graphs: list[Foreign]) -> list[Any]:
    """Return parameters; most are slow ones."""
    return [
        pytest.param(g, id=f"{g.kind}-{g.name}".encode("ascii", "backslashreplace").decode(), marks=marks)
        for i, g in enumerate(graphs)
        for marks in [[] if i % QUICK == 0 else [pytest.mark.slow]]
    ]


def theirs(file: Path, mean: Any, std: Any) -> Floats:
    """Run the file itself, image by image."""
    model = onnx.load(file)
    for node in model.graph.node:
        node.name = ""  # ONNX Runtime wants names that differ, ONNX does not
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = ((PIXELS.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)).astype(np.float32)
    wide = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: wide[i : i + 1]})[0] for i in range(len(wide))])


def logits(model: onnx.ModelProto, images: NDArray[np.uint8] = PIXELS) -> Floats:
    found: Floats = plain_session(model.SerializeToString(), threads=1).run(["logits"], {"image": images})[0]
    return found


@pytest.mark.parametrize("graph", named(TAKEN))
def test_a_foreign_graph_is_right_in_float_and_int8(
    graph: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    file = graph.write(tmp_path)
    source, rules = onnx_source(file)
    expected = theirs(file, rules.mean, rules.std)
    found = logits(source.graph)
    assert np.abs(found - expected).max() <= graph.rounding * max(1.0, float(np.abs(expected).max()))
    assert rules.size == SIZE
    ranges = calibrate(source.graph, SPLIT, 0)
    means = channel_means(source.graph, PIXELS)
    biases = biases_of(correct_biases(source.graph, means))
    for target, method, corrected in (("x86", "minmax", {}), ("x86", "mixed", biases), ("tensorrt", "minmax", {})):
        symmetric = target == "tensorrt"
        encoding = encoding_for(target)
        int8 = quantize(source.graph, ranges.ranges(method, symmetric), encoding, biases=corrected)
        assert sum(n.op_type == "QuantizeLinear" for n in int8.graph.node) >= graph.layers
        assert sqnr_db(found, logits(int8)) >= graph.least_db
        open_binding(int8.SerializeToString(), threads=1, target=target)  # as this machine's CPU needs it
        layer_table(source.graph, int8, PIXELS)
    names = [n.name for n in onnx.load(file).graph.node if n.name]
    assert lint_file(file).support["x86"] != "refused" or len(set(names)) < len(names)


@pytest.mark.parametrize("graph", named(REFUSED))
def test_what_cannot_be_exported_is_refused_in_one_line(graph: Foreign, tmp_path: Path) -> None:
    file = graph.write(tmp_path)
    with pytest.raises(InputError, match=graph.says) as caught:
        onnx_source(file)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    with suppress(InputError):
        lint_file(file)


@pytest.mark.parametrize("graph", [pytest.param(g, id=g.name) for g in TAKEN if not g.layers])
def test_a_graph_without_a_layer_is_not_quantized(graph: Foreign, tmp_path: Path) -> None:
    source, _ = onnx_source(graph.write(tmp_path))
    with pytest.raises(InputError, match="(no layer that|inside If, Loop or Scan, which) INT8 .*leave out `int8`"):
        require_layers(source.graph)


def test_domains_that_no_node_is_of_are_left_out(tmp_path: Path) -> None:
    """ONNX Runtime refuses versions that it does not know, also of what is not used."""
    (graph,) = (g for g in TAKEN if g.name == "a graph without a name")
    plain, _ = onnx_source(graph.write(tmp_path))
    more = onnx.load(tmp_path / "theirs.onnx")
    more.opset_import.extend(onnx.helper.make_opsetid(d, 99) for d in ("ai.onnx.ml", "com.microsoft", "org.example"))
    onnx.save(more, tmp_path / "theirs.onnx")
    assert onnx_source(tmp_path / "theirs.onnx")[0].graph == plain.graph


def test_lint_judges_what_is_larger_than_one_file_by_its_structure(tmp_path: Path, capsys: Any) -> None:
    (graph,) = (g for g in REFUSED if g.name == "more than 2 GiB")
    file = graph.write(tmp_path)
    assert {f.rule for f in lint_file(file).findings} == {"external-data", "larger-than-2-gib"}
    assert run(["lint", str(file)]) == 0
    assert "more than 2 GiB: it was judged without its weights" in capsys.readouterr().err


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len(EVERY) >= 150
    assert len({(g.kind, g.name) for g in EVERY}) == len(EVERY)
