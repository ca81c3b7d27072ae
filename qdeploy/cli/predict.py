"""``qdeploy predict``"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import click

from qdeploy.cli.output import emit_json, extra_needed, note
from qdeploy.core.errors import QdeployError, for_command_line

if TYPE_CHECKING:
    from qdeploy.cli.volume import Watch
    from qdeploy.runtime.answer_csv import AnswerCsv
    from qdeploy.runtime.classifier import Classifier
    from qdeploy.runtime.device import Setup
    from qdeploy.runtime.predict import Answer


@click.command("predict")
@click.argument("images", nargs=-1, required=True)
@click.option("--model", type=click.Path(path_type=Path), help="A model file or export folder. Default: see above.")
@click.option("--top", type=click.IntRange(min=1), default=3, help="Labels per image.")
@click.option("--engine", help="Inference engine. Default: as tuned for this machine, else ort.")
@click.option(
    "--threads",
    type=int,
    help="Threads of one inference. Default: as tuned for this machine, else 1 for small models, else all cores; "
    "1 for many images.",
)
@click.option("--batch-size", type=int, help="Images per inference. Default: as tuned, else 16, or all if fewer.")
@click.option("--workers", type=int, help="Batches decoded and classified at a time. Default: one a core.")
@click.option("--selftest/--no-selftest", default=True, help="Check the model's golden inputs first.")
@click.option("--json", is_flag=True, help="Print one JSON document per image.")
@click.option("--csv", type=click.Path(path_type=Path), help="Write a row per image to this file, and print none.")
@click.option("--ray", is_flag=True, help="Spread the batches with Ray: over RAY_ADDRESS, or this machine.")
@click.option("--ray-address", help="The Ray cluster to use.")
def predict_command(
    images: tuple[str, ...],
    model: Path | None,
    top: int,
    engine: str | None,
    threads: int | None,
    batch_size: int | None,
    workers: int | None,
    selftest: bool,
    json: bool,
    csv: Path | None,
    ray: bool,
    ray_address: str | None,
) -> int:
    """Classify images.

    IMAGES are files, folders, globs, or - for standard input. The model is the newest export below ./exports, else
    the one that ships in the package. The exit code is 2 if an image cannot be read; the others are classified.
    """
    if engine in (None, "ort"):
        _start_onnxruntime()
    from qdeploy.runtime.classifier import find_setup
    from qdeploy.runtime.inputs import expand

    found = expand(images)
    two = list(islice(found, 2))
    many = len(two) == 2
    setup = find_setup(model, engine, threads)
    if model is None:
        note(f"model: {setup.path}")
    own_cores = many and workers != 1  # each worker has its core
    classifier = _opened(setup, threads or 1 if own_cores else setup.threads, selftest)
    if classifier.note:
        note(for_command_line(classifier.note))
    from qdeploy.runtime.predict import predict_files

    if setup.batch is not None and setup.batch > 1:
        batch_size = batch_size or setup.batch
    with ExitStack() as stack:
        file = stack.enter_context(_csv_file(csv)) if csv else None
        if ray or ray_address:
            with extra_needed():
                from qdeploy.runtime.ray_predict import RayConfig, predict_on_ray
            spread = RayConfig(
                address=ray_address,
                batch_size=batch_size,
                workers=workers,
                engine=setup.engine,
                threads=threads or 1,
                selftest=selftest,
            )
            answers = predict_on_ray(classifier.artifact, chain(two, found), spread)
        else:
            answers = predict_files(classifier, chain(two, found), batch_size, workers)
        watch = stack.enter_context(_watch(images, file is None)) if many else None
        return _emit(answers, top, json, file, watch)


def _start_onnxruntime() -> None:
    """Let it set up what all models share, which needs no interpreter, while the rest is imported."""
    with suppress(ImportError, QdeployError, RuntimeError):  # who opens the model says what is wrong
        from qdeploy.runtime.engines.onnxruntime_library import try_environment

        Thread(target=try_environment).start()


def _opened(setup: Setup, threads: int | None, selftest: bool) -> Classifier:
    """Open the model while Pillow loads its formats."""
    from qdeploy.core.artifact import read_artifact
    from qdeploy.core.threads import beside
    from qdeploy.runtime.classifier import Classifier
    from qdeploy.runtime.session import engine_class

    artifact = read_artifact(setup.path)
    engine_class(setup.engine)  # so that opening imports nothing
    return beside(lambda: Classifier(artifact, setup.engine, threads, selftest, setup.note), _load_decoders)


def _load_decoders() -> None:
    from qdeploy.core.image import load_decoders

    load_decoders()


def _emit(answers: Iterator[Answer], top: int, json: bool, file: AnswerCsv | None, watch: Watch | None) -> int:
    """Print and write answers as they come; gives the exit code."""
    failed = 0
    for answer in answers:
        if file is not None:
            file.write(answer)
        if json:
            emit_json(answer.to_dict(top))
        elif answer.prediction is not None and file is None:
            ranked = "  ".join(f"{r.label} {r.probability:.1%}" for r in answer.prediction.top(top))
            print(f"{answer.image}: {ranked}  ({answer.latency_ms['infer']:.2f} ms)", flush=True)
        if answer.error is not None:
            failed += 1
            line = "qdeploy: " + " ".join(f"{answer.image}: {answer.error}".split())
            note(line) if watch is None else watch.line(line)
        if watch is not None:
            watch.see(answer)
    return 2 if failed else 0


def _watch(images: tuple[str, ...], printing: bool) -> Watch:
    from qdeploy.cli.volume import Watch

    return Watch(images, printing)


@contextmanager
def _csv_file(path: Path) -> Iterator[AnswerCsv]:
    """Write a CSV file; where that is stopped, say what is left."""
    from qdeploy.runtime.answer_csv import AnswerCsv

    file = AnswerCsv(path)
    try:
        with file:
            yield file
    except BaseException:
        note(f"stopped: {file.part} holds the first {file.rows} answers")
        raise
