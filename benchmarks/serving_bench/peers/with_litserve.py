"""LitServe with one worker."""

import os
from typing import Any

import litserve as ls
from by_hand import Model
from fastapi import Request


class Classify(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model(os.environ["MODEL"])

    def decode_request(self, request: Request) -> bytes:
        return request["file"].file.read()  # LitServe hands over the form

    def predict(self, data: bytes) -> list[dict[str, object]]:
        return self.model(data)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"predictions": output}


if __name__ == "__main__":
    server = ls.LitServer(Classify(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), num_api_servers=1, generate_client_file=False)
