"""The command ``qdeploy predict``: its options and its lines, JSON and CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.early import start_onnxruntime
from qdeploy.cli.options import OUTPUT, SPEED, WHERE, Abstain, Force, Formats, split_names
from qdeploy.cli.output import complain, emit_json, extra_needed, note, quiet, say
from qdeploy.core.words import percent

if TYPE_CHECKING:
    from qdeploy.cli.volume import Watch
    from qdeploy.core.card import Card
    from qdeploy.runtime.answer_csv import AnswerCsv
    from qdeploy.runtime.classifier import Classifier
    from qdeploy.runtime.device import Setup
    from qdeploy.runtime.predict import Answer


def predict_command(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Files, folders, globs, or - for standard input: an image, or names of images, one a line.",
            show_default=False,
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model file or an export's folder. Default: the newest export below ./exports, else the model that "
            "ships in the package. With --url: the name of one of the server's models."
        ),
    ] = None,
    formats: Formats = None,
    abstain: Abstain = True,
    selftest: Annotated[bool, typer.Option(help="Check the model's golden inputs first.")] = True,
    engine: Annotated[
        str | None,
        typer.Option(
            help="What executes the file. Default: as tuned for this machine, else ort.", rich_help_panel=SPEED
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of one inference. Default: as tuned for this machine, else 1 for small models, else all "
            "cores; 1 for many images.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images of one inference. Default: as tuned, else 16, or all if fewer.", rich_help_panel=SPEED
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Batches decoded and classified at a time. Default: one a core.", rich_help_panel=SPEED),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Spread the batches with Ray: over RAY_ADDRESS, or this machine.", rich_help_panel=WHERE
        ),
    ] = False,
    ray_address: Annotated[str | None, typer.Option(help="The Ray cluster to use.", rich_help_panel=WHERE)] = None,
    url: Annotated[
        str | None, typer.Option(help="Let the `qdeploy serve` at this address classify.", rich_help_panel=WHERE)
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="QDEPLOY_TOKEN", help="The server's token.", rich_help_panel=WHERE)
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Labels per image. Default: 3, in a CSV file 1.", rich_help_panel=OUTPUT),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write a row per image to this file, and print none.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document per image.", rich_help_panel=OUTPUT)
    ] = False,
) -> int:
    """Classify images.

    The exit code is 2 if an image cannot be read; the others are classified.
    """
    if url is not None:
        own = {
            **{"formats": formats, "engine": engine, "threads": threads, "batch_size": batch_size},
            **{"no_abstain": not abstain or None, "ray": ray or None, "ray_address": ray_address},
        }
        if given := [name for name, value in own.items() if value is not None]:
            from qdeploy.core.errors import InputError

            raise InputError(f"with `url` the server decides, not `{given[0]}`", fix="start it so, or leave that out")
        return _by_server(images, url, token, model, workers, top, json, csv, force)
    if engine in (None, "ort"):
        start_onnxruntime()
    from qdeploy.runtime.classifier import find_setup

    left_out: Counter[str] = Counter()
    found, many = _names(images, left_out)
    setup = find_setup(model, engine, threads)
    if model is None:
        note(f"model: {setup.path}")
    own_cores = many and workers != 1  # each worker has its core
    classifier = _opened(setup, threads or 1 if own_cores else setup.threads, selftest, split_names(formats), abstain)
    if classifier.note:
        note(classifier.note)
    from qdeploy.runtime.predict import predict_files

    if setup.batch is not None and setup.batch > 1:
        batch_size = batch_size or setup.batch
    with ExitStack() as stack:
        file = stack.enter_context(_csv_file(csv, top or 1, force, classifier.cut is not None)) if csv else None
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
                formats=split_names(formats),
                abstain=abstain,
            )
            answers = predict_on_ray(classifier.artifact, found, spread)
        else:
            answers = predict_files(classifier, found, batch_size, workers)
        watch = stack.enter_context(_watch(images, file is None, classifier.card)) if many else None
        code = _emit(answers, top or 3, json, file, watch)
    _say_left_out(left_out)
    return code


def _by_server(
    images: list[str],
    url: str,
    token: str | None,
    model: Path | None,
    workers: int | None,
    top: int | None,
    json: bool,
    csv: Path | None,
    force: bool,
) -> int:
    """Let a server classify; ``model`` is the name of one of its models."""
    from qdeploy.serve.client import Client
    from qdeploy.serve.remote import predict_remote

    left_out: Counter[str] = Counter()
    found, many = _names(images, left_out)
    with ExitStack() as stack:
        client = stack.enter_context(Client(url, token=token, model=None if model is None else str(model)))
        file = stack.enter_context(_csv_file(csv, top or 1, force, abstains=True)) if csv else None
        answers = predict_remote(client, found, workers)
        watch = stack.enter_context(_watch(images, file is None)) if many else None
        code = _emit(answers, top or 3, json, file, watch)
    _say_left_out(left_out)
    return code


def _names(words: list[str], left_out: Counter[str]) -> tuple[Iterator[str], bool]:
    """Return the images, and whether there are several."""
    from qdeploy.runtime.inputs import STDIN, expand, listed_on_stdin

    if words == [STDIN] and (arriving := listed_on_stdin()):
        return arriving, True
    found = expand(words, left_out)
    two = list(islice(found, 2))
    return chain(two, found), len(two) == 2


def _say_left_out(files: Counter[str]) -> None:
    """Say which files of folders are no images."""
    if files:
        from qdeploy.core.image_formats import foreign_words

        note(foreign_words(files))


def _opened(
    setup: Setup, threads: int | None, selftest: bool, formats: tuple[str, ...] | None, abstain: bool
) -> Classifier:
    """Open the model while Pillow loads its formats."""
    from qdeploy.core.threads import beside
    from qdeploy.runtime.classifier import Classifier, read_setup
    from qdeploy.runtime.session import engine_class

    artifact = read_setup(setup)
    engine_class(setup.engine)  # so that opening imports nothing
    return beside(
        lambda: Classifier(artifact, setup.engine, threads, selftest, setup.note, formats, abstain), _load_decoders
    )


def _load_decoders() -> None:
    from qdeploy.core.image import load_decoders

    load_decoders()


def _emit(answers: Iterator[Answer], top: int, json: bool, file: AnswerCsv | None, watch: Watch | None) -> int:
    """Print and write answers as they come; return the exit code."""
    from qdeploy.core.image_formats import first_of

    failed = 0
    for answer in answers:
        if file is not None:
            file.write(answer)
        if json:
            emit_json(answer.to_dict(top))
        elif answer.prediction is not None and file is None:
            ranked = "  ".join(f"{r.label} {percent(r.probability)}" for r in answer.prediction.top(top))
            if answer.prediction.unknown:
                ranked = f"unknown (score {answer.prediction.score:.2f}; would be {ranked})"
            say(f"{answer.image}: {ranked}  ({answer.latency_ms['infer']:.2f} ms)")
        if answer.frames > 1 and not quiet():
            line = f"{answer.image}: {first_of(answer.frames)}"
            complain(line) if watch is None else watch.line(line)
        if answer.error is not None:
            failed += 1
            line = f"qdeploy: {answer.image}: {' '.join(answer.error.split())}"
            complain(line) if watch is None else watch.line(line)
        if watch is not None:
            watch.see(answer)
    return 2 if failed else 0


def _watch(images: Sequence[str], printing: bool, card: Card | None = None) -> Watch:
    from qdeploy.cli.volume import Watch

    return Watch(images, printing, card)


@contextmanager
def _csv_file(path: Path, top: int, replace: bool, abstains: bool) -> Iterator[AnswerCsv]:
    """Write a CSV file; where that is stopped, say what is left."""
    from qdeploy.runtime.answer_csv import AnswerCsv

    file = AnswerCsv(path, top=top, replace=replace, abstains=abstains)
    try:
        with file:
            yield file
    except BaseException:
        note(f"stopped: {file.part} holds the first {file.rows} answers")
        raise
