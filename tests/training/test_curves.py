"""What the plot of a run shows and leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdeploy.training.curves import PANELS, draw_curves, marks, panels
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.run_files import write_log
from qdeploy.training.schedule import ConfidenceSchedule


def rows_of(events: tuple[str, ...], **changing: tuple[float, ...]) -> list[dict[str, Any]]:
    columns = {column for _, names in PANELS for column in names}
    return [
        {
            "epoch": i + 1,
            "events": event,
            **dict.fromkeys(columns, 0.5),
            "feature_mean": None,
            **{name: values[i] for name, values in changing.items()},
        }
        for i, event in enumerate(events)
    ]


def test_flat_panels_are_left_out_and_events_are_marked() -> None:
    rows = rows_of(("", "boost reload", "reset"), lr=(0.1, 0.2, 0.3), val_loss=(3.0, 2.0, 1.0))
    assert [label for label, _ in panels(rows)] == ["top-1 (%)", "loss", "learning rate"]
    assert marks(rows) == [(2, "boost reload"), (3, "reset")]
    with_marks, without = draw_curves(rows, "run"), draw_curves([{**row, "events": ""} for row in rows], "run")
    assert with_marks.startswith(b"\x89PNG")
    assert with_marks != without
    full = rows_of(("", ""), **{c: (0.0, 1.0) for _, names in PANELS for c in names})
    assert len(panels(full)) == len(PANELS)
    assert draw_curves(full, "run").startswith(b"\x89PNG")


def test_a_log_goes_on_whose_first_rows_lack_a_column(tmp_path: Path) -> None:
    write_log(tmp_path, [{"epoch": 1, "lr": 0.5}, {"epoch": 2, "lr": 0.25, "drop_path": 0.1}])
    assert (tmp_path / "log.csv").read_text() == "epoch,lr,drop_path\n1,0.5,\n2,0.25,0.1\n"


def test_the_controller_names_what_it_does_to_the_rate() -> None:
    parts: dict[str, Any] = {"boosts": True, "plateau_resets": True, "restarts": True}
    schedule = ConfidenceSchedule(TrainConfig(schedule="confidence", epochs=70, **parts), steps_per_epoch=1)
    found = []
    accuracies = [10.0, 15.0, 15.1, *[15.0] * 5]
    for epoch, top1 in enumerate(accuracies):
        schedule.finish_epoch(epoch, top1)
        found.append(schedule.event)
    assert found[0] == "boost"  # the rate before was at its most, so that the second one changes nothing
    assert found[3:6] == ["", "", ""]
    assert found[6] == "reset"  # after four epochs without growth
    for epoch in range(len(accuracies), 70):
        schedule.finish_epoch(epoch, 15.0 + 0.1 * epoch)
        found.append(schedule.event)
    assert "restart" in found
