"""The data set that a model was made with, where it can be found on this machine."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.card import Card
from qdeploy.core.errors import DataError, InputError
from qdeploy.core.run_folder import RECORD, RUNS, read_record
from qdeploy.data.catalog import READERS
from qdeploy.data.dataset import GENERATED
from qdeploy.data.embedded import FASHION_CLASSES
from qdeploy.data.embedded import NAME as EMBEDDED


def own_data(card: Card) -> str:
    """Return the data set that a model was made with, as ``load_dataset`` takes it.

    It is the data of the run below ``./runs`` whose images had this hash, else the embedded one for a model of its
    classes, else a published set of this name, else a folder here of the data set's name.

    Raises:
        DataError: If it is not found.
    """
    trained = card.origin.dataset
    if trained.name == GENERATED:
        raise DataError("the model was made without data", fix="give `data`")
    for record in sorted(RUNS.glob(f"*/{RECORD}")):
        try:
            run = read_record(record.parent)
        except InputError:  # another run's damage
            continue
        if run.dataset.sha256 == trained.sha256 and Path(run.dataset.source).exists():
            return run.dataset.source
    if set(card.labels) == set(FASHION_CLASSES):
        return EMBEDDED
    if trained.name in READERS:
        return trained.name
    if Path(trained.name).is_dir():
        return trained.name
    raise DataError(f"the data set '{trained.name}' that the model was made with is not found here", fix="give `data`")
