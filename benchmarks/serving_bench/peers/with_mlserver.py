"""MLServer's runtime of one's own: images as base64 ``BYTES`` over the Open Inference Protocol, labels as JSON."""

import json
import os

from by_hand import Model
from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Classify(MLModel):
    async def load(self) -> bool:
        self.model = Model(os.environ["MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answers = [json.dumps(self.model(data)) for data in Base64Codec.decode_input(payload.inputs[0])]
        output = StringCodec.encode_output("predictions", answers)
        return InferenceResponse(model_name=self.name, outputs=[output])
