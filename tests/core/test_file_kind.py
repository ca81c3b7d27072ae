"""Files that are no model are called what they are, by every command that takes one."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.printer
import pytest
import safetensors.numpy
import torch
from onnx import helper

from qdeploy.cli.main import run
from qdeploy.core.file_kind import kind_of


def _zip() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, stream)
    assert zipfile.is_zipfile(stream)
    return stream.getvalue()


FILES: dict[str, tuple[bytes, str]] = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "a page": (b"<!DOCTYPE html>\n<html></html>", "a web page"),
    "torch.save": (_zip(), "a zip archive, such as torch.save writes"),
    "a pickle": (pickle.dumps({"a": 1}, protocol=2), "a pickle of Python"),
    "safetensors": (safetensors.numpy.save({"a": np.zeros(3, np.float32)}), "a file of safetensors"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite"),
    ".ort": (b"\x1c\0\0\0ORTM" + bytes(64), "ONNX Runtime's own format"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "OpenVINO": (b'<?xml version="1.0"?>\n<net name="m"/>', "an XML file"),
    "Keras, which is a graph of nothing to protobuf": (b"\x89HDF\r\n\x1a\n" + b"0" * 50, "HDF5"),
    "text": (onnx.printer.to_text(helper.make_model(helper.make_graph([], "g", [], []))).encode(), "written as text"),
    "JSON": (b'{\n  "irVersion": "9"}', "a text of JSON"),
    "nothing": (b"", "is empty"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "unpack it"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verb", ["inspect", "predict", "lint", "adopt"])
def test_a_file_of_another_kind_is_called_by_its_name(name: str, verb: str, tmp_path: Path, capsys: Any) -> None:
    data, said = FILES[name]
    file = tmp_path / "model.onnx"
    file.write_bytes(data)
    words = {"predict": ["--model", str(file), "image.png"], "adopt": [str(file), "--labels", "a,b"]}
    assert run([verb, *words.get(verb, [str(file)])]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("qdeploy: "))
    assert said in line
    assert str(file) in line


def test_what_says_nothing_is_no_kind() -> None:
    assert kind_of(bytes(64)) is None
