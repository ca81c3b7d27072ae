"""The command ``qdeploy data``: its options and its summary of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.options import OUTPUT, Force, Formats, Json, split_names
from qdeploy.cli.output import SHOWN, Bar, emit_json, extra_needed, note, say
from qdeploy.cli.tables import show_table, table
from qdeploy.core.errors import InputError
from qdeploy.core.image_formats import foreign_words, without_foreign
from qdeploy.core.words import counted, percent

if TYPE_CHECKING:
    from qdeploy.checks.suspects import Judged, Suspects

SUSPECTS = "Label errors"


def data_command(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder of images, a published data set's folder or archive, or a name: fashion-mnist, cifar-10, "
            "cifar-100, tiny-imagenet. Default: the embedded set.",
            show_default=False,
        ),
    ] = None,
    formats: Formats = None,
    suspects: Annotated[
        bool,
        typer.Option(
            "--suspects",
            help="List the images whose label is likely wrong, by models trained without them.",
            rich_help_panel=SUSPECTS,
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="What judges: a model to train, or a model file that was not trained on these images. Default: nano.",
            rich_help_panel=SUSPECTS,
            show_default=False,
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Models to train. Default: 5.", rich_help_panel=SUSPECTS, show_default=False)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of each of them. Default: 12.", rich_help_panel=SUSPECTS, show_default=False),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the likely errors to this file.", rich_help_panel=SUSPECTS)
    ] = None,
    force: Force = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="Print every problem and likely error, not the first ten.", rich_help_panel=OUTPUT),
    ] = False,
    json: Json = False,
) -> None:
    """Check a data set: classes, splits, unreadable and repeated images; with --suspects, wrong labels.

    Files that are no images are counted by their suffix; ``--json`` lists all problems.
    """
    if not suspects and not {model, folds, epochs, csv_file} <= {None}:
        raise InputError("--model, --folds, --epochs and --csv belong to --suspects", fix="add it")
    from qdeploy.core.preprocessing import Preprocessing
    from qdeploy.data.catalog import load_dataset
    from qdeploy.data.embedded import NAME as EMBEDDED
    from qdeploy.data.folders import order_note

    with Bar("reading images") as bar:
        dataset = load_dataset(
            data or EMBEDDED,
            Preprocessing().taking(split_names(formats)),
            progress=bar.update,
            fetching=lambda done, total: bar.update(done, total, "fetching"),
        )
    for line in dataset.notes:
        note(line)
    counts = {
        name: {label: int((split.labels == k).sum()) for k, label in enumerate(dataset.classes)}
        for name, split in dataset.splits.items()
    }
    found = None
    if suspects:
        found = _suspects(
            data or EMBEDDED, sum(map(len, dataset.splits.values())), model, folds, epochs, formats, csv_file, force
        )
    if json:
        emit_json(
            {
                "name": dataset.name,
                "classes": list(dataset.classes),
                "splits": counts,
                "sha256": dataset.sha256,
                "problems": list(dataset.problems),
                **({"suspects": found.to_dict()} if found else {}),
            }
        )
        return
    for name, by_class in counts.items():
        say(f"{name}: {sum(by_class.values())} images ({', '.join(f'{k} {n}' for k, n in by_class.items())})")
    say(f"sha256 {dataset.sha256}")
    if dataset.cache:
        size_bytes = sum(p.stat().st_size for p in dataset.cache.iterdir())
        say(f"decoded images: {dataset.cache} ({size_bytes / 2**20:.1f} MiB)")
    _print_problems(dataset.problems, every)
    if found:
        show_suspects(found, every)
    if order := order_note(dataset.classes):
        note(order)


def _print_problems(problems: Sequence[str], every: bool) -> None:
    """Print what is wrong: the first ``SHOWN``, and of files that are no images only how many they are."""
    say(counted(len(problems), "problem"))
    every = every or len(problems) <= SHOWN
    others, foreign = without_foreign(problems)
    shown = problems if every else others[:SHOWN]
    for problem in shown:
        say(f"  {problem}")
    if not every and foreign:
        say(f"  {foreign_words(foreign)}")
    if not every and len(others) > SHOWN:
        say(f"  ... and {len(others) - SHOWN:,} more; --all lists every one")


def _suspects(
    data: str,
    images: int,
    model: str | None,
    folds: int | None,
    epochs: int | None,
    formats: str | None,
    csv_file: Path | None,
    force: bool,
) -> Suspects:
    """Find the likely label errors, with a model file or with models that are trained for it."""
    from qdeploy.checks.suspects import Suspect, find_suspects, judge_with_file
    from qdeploy.cli.rows import csv_rows

    with csv_rows(csv_file, force, Suspect) as write:
        if model is not None and Path(model).exists():
            if folds is not None or epochs is not None:
                raise InputError("--folds and --epochs are of models to train", found=f"the file {model}")
            from qdeploy.runtime.classifier import find_artifact

            with Bar("judging") as bar:
                judged = judge_with_file(find_artifact(Path(model)), data, split_names(formats), bar.update)
        else:
            judged = _cross_validated(data, images, model, folds, epochs, formats)
        result = find_suspects(judged)
        if write:
            for suspect in result.suspects:
                write(suspect)
    return result


def _cross_validated(
    data: str, images: int, model: str | None, folds: int | None, epochs: int | None, formats: str | None
) -> Judged:
    with extra_needed():
        from qdeploy.training.folds import FOLDS, cross_validated, fold_config
        from qdeploy.training.progress import Silent

    models = FOLDS if folds is None else folds
    config = fold_config(data, images, folds=models, model=model, epochs=epochs, formats=formats)

    class Shown(Silent):
        def reading(self, done: int, total: int) -> None:
            bar.update(done, total)

        def batch(self, epoch: int, done: int, total: int) -> None:
            text = f"training model {epoch // config.epochs + 1} of {models}"
            bar.update(epoch * total + done, models * config.epochs * total, text)

        def note(self, text: str) -> None:
            bar.line(text)

    with Bar("reading images") as bar:
        return cross_validated(config, models, Shown())


def show_suspects(found: Suspects, every: bool) -> None:
    """Print the likely label errors, the most suspicious first."""
    shown = found.suspects if every else found.suspects[:SHOWN]
    rows = [[s.image, s.label, s.likely, percent(s.self_confidence), percent(s.likely_probability)] for s in shown]
    if rows:
        say("")
        show_table(table(("image", "label", "likely", "p(label)", "p(likely)"), rows, words=(0, 1, 2)))
    say(f"judged by {found.by}: {found.top1:.2f} % of {found.n:,} labels are its answer")
    more = (
        f"; --all or --csv lists every one, here are the first {len(shown)}" if len(shown) < len(found.suspects) else ""
    )
    say(
        f"{counted(len(found.suspects), 'label')} likely wrong, estimated to be wrong {found.estimated_errors:.0f} "
        f"(confident learning){more}"
    )
    for text in found.notes:
        note(f"note: {text}")
