"""The command ``qdeploy data``: its options and its summary of a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from qdeploy.cli.options import Json
from qdeploy.cli.output import Bar, emit_json, note


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
    json: Json = False,
) -> None:
    """Check a data set: classes, splits, unreadable and repeated images."""
    from qdeploy.data.catalog import load_dataset
    from qdeploy.data.embedded import NAME as EMBEDDED

    with Bar("reading images") as bar:
        dataset = load_dataset(
            data or EMBEDDED,
            progress=bar.update,
            fetching=lambda done, total: bar.update(done, total, "fetching"),
        )
    for line in dataset.notes:
        note(line)
    counts = {
        name: {label: int((split.labels == k).sum()) for k, label in enumerate(dataset.classes)}
        for name, split in dataset.splits.items()
    }
    if json:
        emit_json(
            {
                "name": dataset.name,
                "classes": list(dataset.classes),
                "splits": counts,
                "sha256": dataset.sha256,
                "problems": list(dataset.problems),
            }
        )
        return
    for name, by_class in counts.items():
        print(f"{name}: {sum(by_class.values())} images ({', '.join(f'{k} {n}' for k, n in by_class.items())})")
    print(f"sha256 {dataset.sha256}")
    if dataset.cache:
        size_bytes = sum(p.stat().st_size for p in dataset.cache.iterdir())
        print(f"decoded images: {dataset.cache} ({size_bytes / 2**20:.1f} MiB)")
    print(f"{len(dataset.problems)} problem(s)")
    for problem in dataset.problems:
        print(f"  {problem}")
