"""Turns encoded images into the pixels that the model takes, with qdeploy's own rules; for Triton's python backend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from qdeploy.core.errors import ImageError
from qdeploy.core.preprocessing import Preprocessing


class TritonPythonModel:
    """What Triton opens, and calls with the requests that wait."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the rules beside this file."""
        rules = Path(args["model_repository"], args["model_version"], "preprocessing.json").read_text()
        self.rules = Preprocessing.from_dict(json.loads(rules))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: an image that cannot be read spoils no other request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        files = triton.get_input_tensor_by_name(request, "image").as_numpy().ravel()
        pixels = np.empty((len(files), self.rules.size, self.rules.size, 3), np.uint8)
        for i, file in enumerate(files):
            try:
                pixels[i] = self.rules(bytes(file))
            except ImageError as error:
                return refusal(f"image {i} {error} [{error.reason}]")
        return triton.InferenceResponse([triton.Tensor("pixels", pixels)])


def refusal(text: str) -> Any:
    """Return the answer to a request at fault."""
    return triton.InferenceResponse(error=triton.TritonError(text, triton.TritonError.INVALID_ARG))
