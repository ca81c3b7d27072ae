"""What a file is that should be a model, told by its first bytes as other programs write them."""

from __future__ import annotations

KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch it with `git lfs pull`"),
    (0, b"<!DOCTYPE", "a web page", "download the file itself"),
    (0, b"<!doctype", "a web page", "download the file itself"),
    (0, b"<html", "a web page", "download the file itself"),
    (4, b"TFL3", "a TensorFlow Lite model", "give the ONNX file it was made from"),
    (4, b"ORTM", "ONNX Runtime's own format (.ort)", "give the ONNX file it was made from"),
    (0, b"ftrt", "a TensorRT engine without a card", "give the ONNX file, or an engine that qdeploy built"),
    (0, b"\x80\x02", "a pickle of Python, as torch.save wrote it once", "export the model to ONNX"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it", "export the model to ONNX"),
    (0, b"<?xml", "an XML file, such as OpenVINO's", "give the ONNX file it was made from"),
    (0, b"PK\x03\x04", "a zip archive, such as torch.save writes", "export the model to ONNX, or unpack it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    (0, b"<\n   ir_version", "ONNX written as text", "give the .onnx file, or parse it with `onnx.parser`"),
    (0, b"{", "a text of JSON", "give an exported .onnx file"),
    (8, b'{"', "a file of safetensors, which holds weights and no graph", "export the model to ONNX"),
)
"""Offset, bytes, what such a file is, and what to do."""


def kind_of(data: bytes) -> tuple[str, str] | None:
    """Return what a file is, and what to do to have a model; None if its first bytes do not tell."""
    if not data:
        return "empty", "copy or export it again"
    return next(((what, fix) for at, start, what, fix in KINDS if data.startswith(start, at)), None)
