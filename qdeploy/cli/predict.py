"""``qdeploy predict``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli.output import emit_json, note


def predict_command(
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    model: Annotated[
        Path | None,
        typer.Option(help="A model file or export folder. Default: the newest export, else the shipped model."),
    ] = None,
    top: Annotated[int, typer.Option(help="Labels per image.", min=1)] = 3,
    engine: Annotated[str, typer.Option(help="Inference engine.")] = "ort",
    threads: Annotated[int | None, typer.Option(help="Threads of one inference. Default: 1 for small models.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per inference.", min=1)] = 1,
    selftest: Annotated[bool, typer.Option(help="Check the model's golden inputs first.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document per image.")] = False,
) -> int:
    """Classify images."""
    from qdeploy.core.artifact import read_artifact
    from qdeploy.runtime.classifier import Classifier, find_artifact
    from qdeploy.runtime.predict import expand, predict_files

    path = find_artifact(model)
    classifier = Classifier(read_artifact(path), engine, threads, selftest)
    if model is None:
        note(f"model: {path}")
    failed = 0
    for answer in predict_files(classifier, expand(images), batch_size):
        if json:
            emit_json(answer.to_dict(top))
        elif answer.prediction is not None:
            ranked = "  ".join(f"{r.label} {r.probability:.1%}" for r in answer.prediction.top(top))
            print(f"{answer.image}: {ranked}  ({answer.latency_ms['infer']:.2f} ms)", flush=True)
        if answer.error is not None:
            failed += 1
            note("qdeploy: " + " ".join(f"{answer.image}: {answer.error}".split()))
    return 2 if failed else 0
