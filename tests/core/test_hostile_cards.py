"""Cards that somebody has changed and sealed again: the checksum is right, and nothing else may be trusted."""

from __future__ import annotations

import json
import os
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.card import Card
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.json_text import parse_json
from qdeploy.native.source import program_of
from qdeploy.runtime.classifier import recommended_file
from tests.resealed import reseal

Capture = pytest.CaptureFixture[str]
Place = tuple[str | int, ...]
MODEL = SHIPPED / "model.int8.onnx"
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 64.0, 10**400, 2**70, 1e308, float("nan"), float("inf")),
    *("", "text", [], {}, [None], ["a"], {"a": 1}),
)


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the way to everything in a JSON document; of a list, to its first element."""
    if place:
        yield place
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*place, key))


def put(card: dict[str, Any], place: Place, value: Any) -> None:
    """Replace one value of a card."""
    inner: Any = card
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value


def test_any_value_anywhere_is_refused_or_does_no_harm() -> None:
    text = json.dumps(read_artifact(MODEL).card.to_dict())
    refused = 0
    for place in places(json.loads(text)):
        for value in VALUES:
            changed = json.loads(text)
            put(changed, place, value)
            try:
                card = Card.from_dict(parse_json(json.dumps(changed)))
            except (ArtifactError, ValueError):
                refused += 1
            else:
                json.dumps(card.to_dict(), allow_nan=False)
    assert refused > 500


@pytest.mark.parametrize("verb", [["inspect"], ["inspect", "--json"], ["predict", "--json", "examples/bag.png"]])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "macs"), 10**400),
        (("model", "macs"), 2**62),
        (("accuracy", "top1"), float("nan")),
        (("origin", "training", "lr"), float("inf")),
        (("goldens", "min_sqnr_db"), float("nan")),
        (("preprocessing", "size"), 64.0),
        (("labels",), "Bag"),
        (("origin", "versions", "torch"), {"a": [1]}),
    ],
)
def test_every_verb_ends_in_an_answer_or_one_line(
    tmp_path: Path, capsys: Capture, verb: list[str], place: Place, value: Any
) -> None:
    file = reseal(MODEL, tmp_path / "m.onnx", lambda card: put(card, place, value))
    words = [*verb[:2], "--model", str(file), *verb[2:]] if verb[0] == "predict" else [*verb, str(file)]
    code = run(words)
    captured = capsys.readouterr()
    assert code in (0, 2)
    assert "defect" not in captured.err
    if code == 0 and "--json" in verb:
        parse_json(captured.out)


@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_nesting_has_an_end(tmp_path: Path, depth: int) -> None:
    text = "[" * depth + "]" * depth
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=r"report\.json is not valid JSON \(it is nested too deeply\)"):
        recommended_file(tmp_path)


def test_goldens_that_unpack_to_gigabytes_are_refused_at_once(tmp_path: Path) -> None:
    packer, packed = zlib.compressobj(9), b""
    for _ in range(256):
        packed += packer.compress(bytes(1 << 20))
    packed += packer.flush()

    def huge(card: dict[str, Any]) -> None:
        card["goldens"]["images_zlib_base64"] = b64encode(packed).decode()

    file = reseal(MODEL, tmp_path / "m.onnx", huge)
    begin = time.process_time()
    with pytest.raises(ArtifactError, match="do not belong together"):
        read_artifact(file)
    assert time.process_time() - begin < 0.2

    def declared(card: dict[str, Any]) -> None:
        huge(card)
        card["goldens"]["shape"] = [2**20, 64, 64, 3]

    with pytest.raises(ArtifactError, match="at most 67108864 are read"):
        read_artifact(reseal(MODEL, tmp_path / "m.onnx", declared))


@pytest.mark.parametrize("name", ["../outside.onnx", "sub/model.onnx", "/etc/hostname", "..", "", 3, None, ["a"]])
def test_a_report_leads_to_no_file_outside_its_folder(tmp_path: Path, name: Any) -> None:
    export = tmp_path / "export"
    (export / "sub").mkdir(parents=True)
    for place in (tmp_path / "outside.onnx", export / "sub" / "model.onnx"):
        place.write_bytes(MODEL.read_bytes())
    (export / "report.json").write_text(json.dumps({"recommended": name}))
    with pytest.raises(InputError, match="is damaged: its recommended model file is missing"):
        recommended_file(export)


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_device_or_pipe_is_no_model(tmp_path: Path, kind: str) -> None:
    file = Path("/dev/zero") if kind == "device" else tmp_path / "model.onnx"
    if kind == "pipe":
        os.mkfifo(file)
    with pytest.raises(ArtifactError, match="is a device or pipe; give a regular file"):
        read_artifact(file)


def test_a_graph_that_fails_when_it_runs_is_a_bad_file_and_no_verdict(tmp_path: Path, capsys: Capture) -> None:
    """Found by the campaign: a zero point of more values than its scale passes ONNX Runtime's checks at opening."""
    import onnx

    model = onnx.load(str(MODEL))
    points = next(n.input[2] for n in model.graph.node if n.op_type == "DequantizeLinear" and "image" not in n.input[0])
    tensor = next(t for t in model.graph.initializer if t.name == points)
    changed = onnx.numpy_helper.to_array(tensor).reshape(1, 1, -1).repeat(2, axis=1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, points))
    file = reseal(MODEL, tmp_path / "m.onnx", lambda card: None, model)
    assert run(["predict", "--model", str(file), "examples/bag.png"]) == 2
    (line,) = [li for li in capsys.readouterr().err.splitlines() if li.startswith("qdeploy: ")]
    assert "export it again" in line


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_graph_that_ends_too_early_is_a_bad_file_for_the_compiler(share: float) -> None:
    """Found by the campaign, through `inspect`: a file that was cut and sealed again."""
    sound = read_artifact(MODEL)
    with pytest.raises(ArtifactError, match="holds a graph that contradicts itself"):
        program_of(replace(sound, data=sound.data[: int(len(sound.data) * share)]))
