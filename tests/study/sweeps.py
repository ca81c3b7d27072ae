"""A sweep's record as it stands at the end, without anything having been trained."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.machine import environment
from qdeploy.study.record import Model, Probe, Record, Rung, Step
from qdeploy.study.results import Exported, ExportedFile, Measured, MeasuredFile, Result, Speedup, Trained
from qdeploy.study.settings import SweepConfig

IMAGES = {"train": 80, "val": 10, "test": 20}


def measured_sweep(folder: Path, more: str = "") -> Record:
    """Two models that were measured and one that failed; ``more`` is added to every text."""
    names = [f"{name}{more}" for name in ("nano", "micro", "broken")]
    models = {n: Model(name=n, family=f"f{more}", params=9 + i, macs=10**6, input_size=64) for i, n in enumerate(names)}
    steps = [
        Step(kind=kind, rung=0, model=n, wall_s=1.5, error=None, result=result)
        for i, n in enumerate(names[:2])
        for kind, result in _results(more, i).items()
    ]
    steps.append(Step(kind="train", rung=0, model=names[2], wall_s=0.5, error=f"no luck{more}", result=None))
    found = environment("qdeploy")
    return Record(
        folder=folder,
        config=SweepConfig(models=tuple(names), data=f"photos{more}", recipe=f"small{more}", epochs=1, seed=0),
        models=models,
        most_epochs=1,
        environment={**found, "cpu": f"a cpu{more}", "flags": [f"avx2{more}"], "versions": {"qdeploy": f"1{more}"}},
        probes={names[0]: Probe(epoch_s=1.0, start_s=2.0, images=IMAGES)},
        planned=(1,),
        predicted_s=60.0,
        rungs=(Rung(epochs=1, models=tuple(names)),),
        steps=tuple(steps),
        dataset_sha256="same",
        complete=True,
    )


def _results(more: str, i: int) -> dict[str, Result]:
    return {
        "train": Trained(
            family=f"f{more}",
            params=9 + i,
            macs=10**6,
            input_size=64,
            epochs=1,
            best_epoch=1,
            val_top1=70.0 + i,
            test_top1=60.5,
            seconds=1.25,
            images=IMAGES,
            dataset=f"photos{more}",
            dataset_sha256="same",
        ),
        "export": Exported(
            artifacts={
                p: ExportedFile(
                    test_top1=60.0 + i,
                    test_n=20,
                    size_bytes=4000 // (j + 1),
                    p50_ms=0.5,
                    precision=61.5 + j,
                    recall=60.5,
                    file=f"model.{p}.onnx",
                    flash_bytes=3000 + j,
                    ram_bytes=2000 + j,
                )
                for j, p in enumerate(("fp32", "int8"))
            },
            verdict=f"kept{more}",
            int8_error=None,
        ),
        "measure": Measured(
            artifacts={
                p: MeasuredFile(latency_ms=0.5 / (j + 1) + i, n=900, peak_bytes=10**8)
                for j, p in enumerate(("fp32", "int8"))
            },
            int8_speedup=Speedup(ratio=2.0, ci95=(1.9, 2.1)),
            cpu=f"a cpu{more}",
        ),
    }
