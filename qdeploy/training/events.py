"""The log as TensorBoard events, for those who watch runs there."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.errors import MissingDependencyError
from qdeploy.training.progress import Row

FOLDER = "tensorboard"


class EventLog:
    """Writes every number of an epoch's row as a scalar of the same name, with the epoch as its step."""

    def __init__(self, run: Path, epochs_done: int) -> None:
        """Open the log; events of epochs that will be trained again are purged.

        Raises:
            MissingDependencyError: If TensorBoard is not installed.
        """
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / FOLDER), purge_step=epochs_done + 1)

    def epoch(self, row: Row) -> None:
        """Write an epoch's row."""
        for name, value in row.items():
            if name != "epoch" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()


def require_tensorboard() -> None:
    """Check that TensorBoard is installed.

    Raises:
        MissingDependencyError: If not.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "`tensorboard` needs TensorBoard, which is not installed", command="pip install 'qdeploy[tensorboard]'"
        ) from error
