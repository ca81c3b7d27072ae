"""The kit for KServe: its services against the fields of KServe's own types, and what one file says of another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from qdeploy.core.artifact import read_artifact
from qdeploy.export import write_kits
from qdeploy.export.kits.kserve import service_name
from qdeploy.export.report.record import ExportReport

QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$"}
DNS_LABEL = {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"}
TEXTS = {"type": "array", "items": {"type": "string"}}


def table(required: str = "", **fields: Any) -> dict[str, Any]:
    """Return the schema of a table that has these fields and no others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


PROBE = table(
    "httpGet",
    httpGet=table("path port", path={"type": "string", "pattern": "^/"}, port={"type": "integer"}),
    initialDelaySeconds={"type": "integer", "minimum": 0},
    periodSeconds={"type": "integer", "minimum": 1},
    timeoutSeconds={"type": "integer", "minimum": 1},
    failureThreshold={"type": "integer", "minimum": 1},
)
CONTAINER = {
    "name": {"type": "string"},
    "image": {"type": "string", "pattern": r"^[a-z0-9][a-z0-9./_-]*:[A-Za-z0-9._-]+$"},
    "args": TEXTS,
    "ports": {
        "type": "array",
        "items": table(
            "containerPort",
            name={"type": "string"},
            containerPort={"type": "integer"},
            protocol={"enum": ["TCP", "UDP", "SCTP"]},
        ),
    },
    "resources": table(requests=table(cpu=QUANTITY, memory=QUANTITY), limits=table(cpu=QUANTITY, memory=QUANTITY)),
    "securityContext": table(
        runAsNonRoot={"type": "boolean"},
        runAsUser={"type": "integer"},
        allowPrivilegeEscalation={"type": "boolean"},
        readOnlyRootFilesystem={"type": "boolean"},
        capabilities=table(drop=TEXTS),
    ),
    "volumeMounts": {
        "type": "array",
        "items": table("name mountPath", name=DNS_LABEL, mountPath={"type": "string"}, readOnly={"type": "boolean"}),
    },
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
}
MODEL = table(
    "modelFormat",
    modelFormat=table("name", name={"type": "string"}, version={"type": "string"}),
    runtime={"type": "string"},
    protocolVersion={"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]},
    storageUri={"type": "string", "pattern": "^[a-z0-9]+://"},
    **CONTAINER,
)
PREDICTOR = table(
    minReplicas={"type": "integer", "minimum": 0},
    maxReplicas={"type": "integer", "minimum": 0},
    model=MODEL,
    containers={"type": "array", "minItems": 1, "items": table("name image", **CONTAINER)},
    volumes={
        "type": "array",
        "items": table("name", name=DNS_LABEL, secret=table("secretName", secretName=DNS_LABEL), emptyDir=table()),
    },
    terminationGracePeriodSeconds={"type": "integer", "minimum": 0},
)
SERVICE = table(
    "apiVersion kind metadata spec",
    apiVersion={"const": "serving.kserve.io/v1beta1"},
    kind={"const": "InferenceService"},
    metadata=table("name", name={**DNS_LABEL, "maxLength": 50}),
    spec=table("predictor", predictor=PREDICTOR),
)
"""The part of KServe's InferenceService and of Kubernetes' container that the kit uses, from their Go types."""


@pytest.fixture(scope="module")
def kit(exported: ExportReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kits(Path(exported.out), ["kserve", "docker"], tmp_path_factory.mktemp("kserve"))["kserve"]


def predictor(kit: Path, name: str) -> Any:
    service = yaml.safe_load((kit / name).read_text())
    jsonschema.validate(service, SERVICE)
    return service["spec"]["predictor"]


@pytest.mark.parametrize("name", ["triton.yaml", "qdeploy.yaml"])
def test_a_service_fits_kserve_s_types(kit: Path, name: str) -> None:
    found = predictor(kit, name)
    assert ("model" in found) != ("containers" in found)
    part = found.get("model") or found["containers"][0]
    assert part["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert part["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_the_schema_finds_what_kserve_does_not_know(kit: Path) -> None:
    service = yaml.safe_load((kit / "triton.yaml").read_text())
    service["spec"]["predictor"]["model"]["protocol"] = "v2"
    with pytest.raises(jsonschema.ValidationError, match="protocol"):
        jsonschema.validate(service, SERVICE)


def test_the_model_is_one_of_triton(kit: Path, exported: ExportReport) -> None:
    recommended = Path(exported.out) / exported.recommended
    model = predictor(kit, "triton.yaml")["model"]
    assert (model["modelFormat"], model["protocolVersion"]) == ({"name": "onnx"}, "v2")
    assert model["storageUri"].endswith("/models")
    (folder,) = (kit / "models").iterdir()
    found = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (found.name, found.platform) == (folder.name, "onnxruntime_onnx")
    assert (folder / "1" / "model.onnx").read_bytes() == recommended.read_bytes()
    assert (folder / "labels.txt").read_text().splitlines() == list(read_artifact(recommended).card.labels)


def test_the_container_is_that_of_the_docker_kit(kit: Path) -> None:
    found = predictor(kit, "qdeploy.yaml")
    (container,) = found["containers"]
    dockerfile = (kit.with_name("kit-docker") / "Dockerfile").read_text()
    assert container["name"] == "kserve-container"
    assert f"USER {container['securityContext']['runAsUser']}\n" in dockerfile
    (port,) = {p["containerPort"] for p in container["ports"]}
    assert f"EXPOSE {port}\n" in dockerfile
    assert {container[p]["httpGet"]["port"] for p in ("readinessProbe", "livenessProbe")} == {port}
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert set(mounts) == {v["name"] for v in found["volumes"]}
    assert f"{mounts['token']}/token" in container["args"]
    secret = next(v["secret"]["secretName"] for v in found["volumes"] if "secret" in v)
    assert f"kubectl create secret generic {secret} " in (kit / "README.md").read_text()


@pytest.mark.parametrize("name", ["nano-fashion-mnist", "9 lives", "Été & Été", "猫", "a" * 90, "a" * 39 + "--b", ""])
def test_a_service_s_name_is_one_of_kubernetes(name: str) -> None:
    assert re.fullmatch("[a-z]([a-z0-9-]{0,38}[a-z0-9])?", service_name(name))
