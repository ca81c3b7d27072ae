"""``qdeploy predict``"""

from __future__ import annotations

from pathlib import Path

import click

from qdeploy.cli.output import emit_json, note


@click.command("predict")
@click.argument("images", nargs=-1, required=True)
@click.option("--model", type=click.Path(path_type=Path), help="A model file or export folder. Default: see above.")
@click.option("--top", type=click.IntRange(min=1), default=3, help="Labels per image.")
@click.option("--engine", help="Inference engine. Default: as tuned for this machine, else ort.")
@click.option(
    "--threads",
    type=int,
    help="Threads of one inference. Default: as tuned for this machine, else 1 for small models, else all cores.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per inference. Default: as tuned, else 1.")
@click.option("--selftest/--no-selftest", default=True, help="Check the model's golden inputs first.")
@click.option("--json", is_flag=True, help="Print one JSON document per image.")
def predict_command(
    images: tuple[str, ...],
    model: Path | None,
    top: int,
    engine: str | None,
    threads: int | None,
    batch_size: int | None,
    selftest: bool,
    json: bool,
) -> int:
    """Classify images.

    IMAGES are files, folders, globs, or - for standard input. The model is the newest export below ./exports, else
    the one that ships in the package.
    """
    from qdeploy.core.artifact import read_artifact
    from qdeploy.runtime.classifier import Classifier, find_setup
    from qdeploy.runtime.predict import expand, predict_files

    setup = find_setup(model, engine, threads)
    if model is None:
        note(f"model: {setup.path}")
    if setup.note:
        note(setup.note)
    classifier = Classifier(read_artifact(setup.path), setup.engine, setup.threads, selftest)
    failed = 0
    for answer in predict_files(classifier, expand(images), batch_size or setup.batch or 1):
        if json:
            emit_json(answer.to_dict(top))
        elif answer.prediction is not None:
            ranked = "  ".join(f"{r.label} {r.probability:.1%}" for r in answer.prediction.top(top))
            print(f"{answer.image}: {ranked}  ({answer.latency_ms['infer']:.2f} ms)", flush=True)
        if answer.error is not None:
            failed += 1
            note("qdeploy: " + " ".join(f"{answer.image}: {answer.error}".split()))
    return 2 if failed else 0
