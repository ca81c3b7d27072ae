"""``GET /openapi.json``: what the server takes and gives, for tools."""

from __future__ import annotations

from typing import Any

from qdeploy import __version__

Document = dict[str, Any]
_ERROR = {"$ref": "#/components/schemas/Error"}


def openapi(token: bool) -> Document:
    """Return the OpenAPI document.

    Args:
        token: Whether requests need a token.
    """
    tensor_parameters = {"type": "object", "additionalProperties": True}
    schemas: Document = {
        "Error": {
            "type": "object",
            "required": ["error", "reason"],
            "properties": {"error": {"type": "string"}, "reason": {"type": "string"}},
        },
        "Ranked": {
            "type": "object",
            "required": ["label", "index", "probability"],
            "properties": {
                "label": {"type": "string"},
                "index": {"type": "integer", "minimum": 0},
                "probability": {"type": "number", "minimum": 0, "maximum": 1},
            },
        },
        "Predicted": {
            "type": "object",
            "required": ["model", "version", "latency_ms"],
            "properties": {
                "model": {"type": "string"},
                "version": {"type": "string"},
                "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Ranked"}},
                "label": {"type": "string"},
                "unknown": {"type": "boolean"},
                "score": {"type": "number"},
                "images": {"type": "array", "items": {"type": "object"}},
                "latency_ms": {"type": "object", "additionalProperties": {"type": "number"}},
            },
        },
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "parameters": tensor_parameters,
                "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _tensor(tensor_parameters)},
                "outputs": {"type": "array", "items": {"type": "object"}},
            },
        },
        "InferResponse": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "id": {"type": "string"},
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "outputs": {"type": "array", "items": _tensor(tensor_parameters)},
            },
        },
        "Any": {},
    }
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "qdeploy",
            "version": __version__,
            "description": "Image classification. The paths below /v2 are the Open Inference Protocol, version 2.",
        },
        "paths": _paths(),
        "components": {"schemas": schemas},
    }
    if token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _tensor(parameters: Document) -> Document:
    return {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"type": "string"},
            "parameters": parameters,
            "data": {"type": "array"},
        },
    }


def _paths() -> Document:
    model = [_parameter("model", "path", {"type": "string"})]
    version = [*model, _parameter("version", "path", {"type": "string"})]
    images = {"type": "string", "format": "binary"}
    predict = {
        "summary": "Classify an image file, or the files of a form.",
        "parameters": [
            _parameter("model", "query", {"type": "string"}),
            _parameter("version", "query", {"type": "string"}),
            _parameter("top", "query", {"type": "string", "pattern": "^([1-9][0-9]*|all)$"}),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": images},
                "application/octet-stream": {"schema": images},
                "multipart/form-data": {"schema": {"type": "object", "additionalProperties": images}},
            },
        },
        "responses": _responses("Predicted"),
    }
    explain = {
        "summary": "Show where in an image file a model finds its answer.",
        "parameters": [_parameter(name, "query", {"type": "string"}) for name in ("model", "version")],
        "requestBody": predict["requestBody"],
        "responses": _responses("Any"),
    }
    infer = {
        "summary": "Infer from tensors or image files.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
        },
        "responses": _responses("InferResponse"),
    }
    paths: Document = {
        "/predict": {"post": predict},
        "/explain": {"post": explain},
        "/v2": {"get": _get("The server's name, version and extensions.")},
        "/v2/health/live": {"get": _get("Whether the process answers.")},
        "/v2/health/ready": {"get": _get("Whether all models are loaded and warm.")},
        "/v2/models/stats": {"get": _get("Counts and times of all models.")},
        "/v2/repository/index": {"post": _post("All models with their states.")},
        "/v2/repository/models/{model}/load": {"post": _post("Read a model's file again.", model)},
        "/v2/repository/models/{model}/unload": {"post": _post("Let a model go.", model)},
        "/report": {"get": _get("Times, rates, memory and CPU time.")},
        "/metrics": {"get": _get("The counts in Prometheus' text format.", kind="text/plain")},
    }
    for path, given in (("/v2/models/{model}", model), ("/v2/models/{model}/versions/{version}", version)):
        paths[path] = {"get": _get("A model's inputs and outputs.", given)}
        paths[f"{path}/ready"] = {"get": _get("Whether a model is loaded.", given)}
        paths[f"{path}/config"] = {"get": _get("A model's configuration.", given)}
        paths[f"{path}/stats"] = {"get": _get("Counts and times of a model.", given)}
        paths[f"{path}/infer"] = {"post": {**infer, "parameters": given}}
    return paths


def _parameter(name: str, place: str, schema: Document) -> Document:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _get(summary: str, parameters: list[Document] | None = None, kind: str = "application/json") -> Document:
    return {"summary": summary, "parameters": parameters or [], "responses": _responses("Any", kind)}


def _post(summary: str, parameters: list[Document] | None = None) -> Document:
    body = {"content": {"application/json": {"schema": {"type": "object"}}}}
    return {**_get(summary, parameters), "requestBody": body}


def _responses(schema: str, kind: str = "application/json") -> Document:
    good = {"description": "The answer.", "content": {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
    bad = {"description": "Why there is none.", "content": {"application/json": {"schema": _ERROR}}}
    return {"200": good, "4XX": bad, "5XX": bad}
