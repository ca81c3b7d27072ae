"""The command ``qdeploy eval``: its options, its tables, and its rows for each image."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.cli.options import OUTPUT, Abstain, Force, Json, Split, split_names
from qdeploy.cli.output import SHOWN, Bar, emit_json, hint, note, say
from qdeploy.cli.rows import csv_rows
from qdeploy.cli.tables import WIDTH, show_table, table
from qdeploy.core.words import counted, percent, rounded

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.checks.confidence import Trust
    from qdeploy.checks.evaluate import ClassScore, Evaluation

BUDGET = "Accuracy budget"


def eval_command(
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="ARTIFACT",
            help="A model file or an export's folder. Default: the newest export below ./exports, else the model that "
            "ships in the package.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="What `qdeploy data` takes. Default: what the model was made with, if it is found here.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="As training cuts them; all: every image.")] = "test",
    formats: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Take only these, as jpeg,png. Default: those that the model's training took.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images of one inference.")] = 32,
    engine: Annotated[str, typer.Option(help="What executes the file.")] = "ort",
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of one inference. Default: 1 for small models, else all cores.", show_default=False),
    ] = None,
    abstain: Abstain = True,
    unknown: Annotated[
        Path | None,
        typer.Option(help="Folder of images of other things: does the model tell them?", show_default=False),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with this file image by image, fp32 say.", rich_help_panel=BUDGET),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Points of top-1 that may be lost against it.", rich_help_panel=BUDGET)
    ] = 1.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Too few images to tell is a loss, too.", rich_help_panel=BUDGET)
    ] = False,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help="Write every image's answer to this file.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Measure the accuracy of a model file on a data set.

    A single argument that is no model is DATA. With --against, the exit code is 1 if more is lost than --max-drop.
    """
    from qdeploy.checks.evaluate import EvalConfig, Scored, evaluate
    from qdeploy.checks.own_data import own_data
    from qdeploy.core.artifact import read_artifact
    from qdeploy.core.image_formats import foreign_words, without_foreign
    from qdeploy.data.catalog import READERS
    from qdeploy.data.splits import REPEATED
    from qdeploy.runtime.classifier import find_artifact

    if artifact is not None and data is None and (artifact in READERS or _is_plain_folder(Path(artifact))):
        artifact, data = None, artifact
    path = find_artifact(Path(artifact) if artifact else None)
    config = EvalConfig(
        data=data or own_data(read_artifact(path).card),
        split=split,
        formats=split_names(formats),
        batch_size=batch_size,
        engine=engine,
        threads=threads,
        abstain=abstain,
        unknown=unknown,
        against=against,
        max_drop=max_drop,
        strict=strict,
    )
    note(f"model: {path}, data: {config.data}, split: {split}")
    with Bar("evaluating") as bar, csv_rows(csv_file, force, Scored) as each:
        result = evaluate(path, config, bar.update, each)
    images, foreign = without_foreign(p for p in result.problems if REPEATED not in p)
    for problem in images[:SHOWN]:
        note(f"left out: {problem}")
    if len(images) > SHOWN:
        note(f"left out: {len(images) - SHOWN:,} more; `qdeploy data {shlex.quote(config.data)} --all` names them")
    if foreign:
        note(foreign_words(foreign))
    if repeats := sum(REPEATED in p for p in result.problems):
        note(f"left out: {counted(repeats, 'image')} there twice; `qdeploy data` names them")
    if json:
        emit_json(result.to_dict())
    else:
        show(result)
    return int(result.against is not None and not result.against.accepted)


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not (path / "report.json").is_file()


def show(result: Evaluation) -> None:
    """Print the accuracy of each class and of all."""
    show_table(table(_HEAD, [_row(c) for c in result.classes], words=(0, 5)))
    figures = len(result.labels) * (2 + max(len(str(n)) for row in result.confusion for n in row))
    if figures + _LABEL_WIDTH <= WIDTH:
        show_table(_confusion(result))
    else:
        hint(f"{len(result.labels)} labels: which was taken for which is in --json and --csv")
    say(f"{result.name} {result.precision} with {result.engine} on {result.n} images of {result.data} ({result.split})")
    say(f"top-1 {result.top1:.2f} % (95 % interval {result.ci95[0]:.2f} to {result.ci95[1]:.2f})")
    if result.top5 is not None and result.top5_ci95 is not None:
        say(f"top-5 {result.top5:.2f} % (95 % interval {result.top5_ci95[0]:.2f} to {result.top5_ci95[1]:.2f})")
    m = result.macro
    say(f"mean over the classes: precision {percent(m.precision)}, recall {percent(m.recall)}, F1 {percent(m.f1)}")
    card = result.card_accuracy
    if "top1" in card:
        say(
            f"the card says {card['top1']:.2f} % top-1 on {card['n']} {card['split']} images of the data it was made "
            "with"
        )
    for line in _trust(result.trust):
        say(line)
    if result.against:
        say(result.against.words())
    say(f"{result.images_per_s:.0f} images/s, inference alone")
    for text in result.notes:
        hint(f"note: {text}")


def _trust(t: Trust) -> Iterator[str]:
    """Return how far the confidence can be trusted, in words."""
    r = t.reliability
    yield (
        f"confidence: temperature {t.temperature:.3f}, ECE {r.ece:.4f} (95 % interval {r.ece_ci95[0]:.4f} to "
        f"{r.ece_ci95[1]:.4f}), NLL {r.nll:.4f}, Brier {r.brier:.4f}; area under the risk-coverage curve "
        f"{t.aurc:.4f} by the score, {t.aurc_probability:.4f} by the probability"
    )
    if t.coverage is not None and t.coverage_ci95 is not None:
        low, high = t.coverage_ci95
        right = "none answered" if t.answered_top1 is None else f"top-1 of these {t.answered_top1:.2f} %"
        interval = f"95 % interval {rounded(100 * low, 2)} to {rounded(100 * high, 2)}"
        yield f"answered {percent(t.coverage, 2)} ({interval}), {right}; the others are unknown"
    if o := t.others:
        left_out = f", {o.left_out} not readable" if o.left_out else ""
        said = "" if o.unknown is None else f"{percent(o.unknown)} unknown; "
        by = (
            f"by the {name}, AUROC {told.auroc:.3f} ({told.auroc_ci95[0]:.3f} to {told.auroc_ci95[1]:.3f}), and a "
            f"limit that 95 % of the data pass lets {percent(told.fpr95)} of these pass"
            for name, told in (("score", o.score), ("probability", o.probability))
        )
        yield f"{o.n} images of other things in {o.folder}{left_out}: {said}{'; '.join(by)}"


_LABEL_WIDTH = 16
"""Left for the labels beside the figures of the confusion matrix; longer ones are broken into lines."""
_HEAD = ("label", "n", "precision", "recall", "F1", "most confused with")


def _row(c: ClassScore) -> list[str]:
    shares = [percent(v) if v is not None else "-" for v in (c.precision, c.recall, c.f1)]
    return [c.label, str(c.n), *shares, f"{c.confused_with} ({c.confused})" if c.confused_with else "-"]


def _confusion(result: Evaluation) -> Table:
    head = ("", *(str(k) for k in range(len(result.labels))))
    rows = [(f"{k} {result.labels[k]}", *(str(v) if v else "." for v in row)) for k, row in enumerate(result.confusion)]
    return table(head, rows, title="true label (rows), answer (columns)")
