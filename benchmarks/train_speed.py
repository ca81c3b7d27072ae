"""How much of the machine training uses, and what precision, memory layout and compilation bring.

    python benchmarks/train_speed.py [MODEL ...] [--compile] [--rounds 12]

For each model, in one run, round by round side by side: the bare forward, backward and optimizer step on a fixed batch
in each form, and the real loop (gathering, augmentation, mixing, loss, clipping, averages, counting) with the recipes
small and qonstraint-5.9. A round is three steps of 64 images. `loop_share` is the loop's throughput over that of the
bare step in the loop's own form, per round: median, lowest and highest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import keep
from torch import nn

from qdeploy.data.catalog import load_dataset
from qdeploy.models.registry import create_model
from qdeploy.training import TrainConfig, config_from_recipe
from qdeploy.training.batches import Batches
from qdeploy.training.device import Precision, choose_precision
from qdeploy.training.distributed import World
from qdeploy.training.learner import Learner, Tally
from qdeploy.training.schedule import build_schedule

MODELS = ("nano", "nano-a", "micro")
BATCH = 64
STEPS = 3
RECIPES = ("small", "qonstraint-5.9")
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--compile", action="store_true", help="also compile the model; takes a minute each")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    rows = [row for name in arguments.models for row in measure(name, arguments.compile, arguments.rounds)]
    keep("train_speed", rows, batch=BATCH, steps_per_round=STEPS, threads=torch.get_num_threads())


def measure(name: str, with_compile: bool, rounds: int) -> list[dict[str, Any]]:
    device = choose_precision("auto", "auto").device
    forms: dict[str, Step] = {}
    for amp in (None, torch.bfloat16):
        for layout in (torch.channels_last, torch.contiguous_format):
            label = (
                f"{'bf16' if amp else 'fp32'}, {'channels last' if layout is torch.channels_last else 'channels first'}"
            )
            forms[label] = bare(name, Precision(device, amp), layout, compiled=False)
            if with_compile and layout is torch.channels_last:
                forms[f"{label}, compiled"] = bare(name, Precision(device, amp), layout, compiled=True)
    own = "bf16, channels last" if choose_precision("auto", "auto").autocast_dtype else "fp32, channels last"
    data_seconds: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    for recipe in RECIPES:
        forms[f"loop, {recipe}"] = loop(name, recipe, data_seconds[recipe])
    speeds: dict[str, list[float]] = {label: [] for label in forms}
    for i in range(rounds + 1):
        for label, step in forms.items():
            speed = images_per_s(step, device)
            if i:  # the first round warms up
                speeds[label].append(speed)
    return [row(name, label, values, speeds[own], data_seconds) for label, values in speeds.items()]


def bare(name: str, precision: Precision, layout: torch.memory_format, compiled: bool) -> Step:
    torch.manual_seed(0)
    model = create_model(name, 10).to(precision.device).to(memory_format=layout).train()
    network: nn.Module = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    image = torch.rand(BATCH, 3, 64, 64, device=precision.device).to(memory_format=layout)
    labels = torch.arange(BATCH, device=precision.device) % 10

    def step() -> None:
        with precision.autocast():
            logits = network(image)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def loop(name: str, recipe: str, data_seconds: list[float]) -> Step:
    config: TrainConfig = config_from_recipe(recipe, model=name, batch_size=BATCH, epochs=2)
    precision = choose_precision("auto", "auto")
    world = World(device=precision.device)
    dataset = load_dataset()
    torch.manual_seed(0)
    learner = Learner(create_model(name, 10), config, precision, dataset.preprocessing, world)
    batches = Batches(dataset.splits["train"], 10, dataset.preprocessing, config, world)
    schedule, tally, done = build_schedule(config, batches.steps), Tally(world), [0]

    def step() -> None:
        begin = time.perf_counter()
        settings = schedule.settings(done[0])
        batch = batches.batch(1, done[0] % batches.steps, settings.confidence)  # the second, stronger phase
        data_seconds.append(time.perf_counter() - begin)
        learner.step(batch, settings, tally)
        done[0] += 1

    return step


def images_per_s(step: Step, device: torch.device) -> float:
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return STEPS * BATCH / (time.perf_counter() - begin)


def row(
    name: str, label: str, values: list[float], own: list[float], data_seconds: dict[str, list[float]]
) -> dict[str, Any]:
    found = {
        "model": name,
        "form": label,
        "images_per_s": round(statistics.median(values)),
        "lowest": round(min(values)),
        "highest": round(max(values)),
        "n": len(values),
    }
    if label.startswith("loop"):
        shares = [a / b for a, b in zip(values, own, strict=True)]
        seconds = data_seconds[label.removeprefix("loop, ")][STEPS:]
        found["loop_share"] = [round(f(shares), 3) for f in (statistics.median, min, max)]
        found["data_share"] = round(statistics.median(seconds) * statistics.median(values) / BATCH, 3)
    return found


if __name__ == "__main__":
    main()
