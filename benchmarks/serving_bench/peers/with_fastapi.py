"""FastAPI by hand: the raw body to an ``async`` function, and a form's file to a plain one."""

import os
from typing import Any

from by_hand import Model
from fastapi import FastAPI, Request, UploadFile

app = FastAPI()
model = Model(os.environ["MODEL"])


@app.get("/health")
def health() -> dict[str, bool]:
    return {"ready": True}


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    return {"predictions": model(await request.body())}


@app.post("/upload")
def upload(file: UploadFile) -> dict[str, Any]:
    return {"predictions": model(file.file.read())}
