"""The time of each phase of one answer, from an encoded image's bytes to the best labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

from qdeploy.bench.latency import latency_summary
from qdeploy.core.card import Card
from qdeploy.runtime.classifier import Prediction
from qdeploy.runtime.session import Session

PHASES = ("decode", "preprocess", "infer", "post", "end_to_end")
RUNS = 700
"""Timed runs of each model: enough to state p99."""
QUICK_RUNS = 140
SECONDS = 10.0
"""Time limit for all models together; a slow model gets fewer runs."""
TOP = 5

Phases = dict[str, dict[str, float | None]]


def time_phases(cards: Sequence[Card], sessions: Sequence[Session], files: Sequence[bytes], runs: int) -> list[Phases]:
    """Time decoding, preprocessing, inference and ranking of single images, the models taking turns.

    Args:
        cards: The card of each model.
        sessions: The opened models.
        files: Encoded images, over which the runs rotate.
        runs: Timed runs of each model.

    Returns:
        For each model, the summary of each phase and of the whole, in milliseconds.
    """
    found: list[list[tuple[float, ...]]] = [[] for _ in sessions]
    begin = time.perf_counter()
    for i in range(runs):
        for mine, card, session in zip(found, cards, sessions, strict=True):
            mine.append(_phases(card, session, files[i % len(files)]))
        if time.perf_counter() - begin > SECONDS:
            break
    return [
        {name: latency_summary(times) for name, times in zip(PHASES, zip(*mine, strict=True), strict=True)}
        for mine in found
    ]


def _phases(card: Card, session: Session, file: bytes) -> tuple[float, ...]:
    rules = card.preprocessing
    stamps = [time.perf_counter_ns()]
    image = rules.open(file)
    stamps.append(time.perf_counter_ns())
    pixels = rules.fit(image).tobytes()
    stamps.append(time.perf_counter_ns())
    _, probabilities = session.infer_bytes(pixels, 1)
    stamps.append(time.perf_counter_ns())
    Prediction(card.labels, probabilities[0]).top(TOP)
    stamps.append(time.perf_counter_ns())
    parts = [(b - a) / 1e6 for a, b in pairwise(stamps)]
    return (*parts, (stamps[-1] - stamps[0]) / 1e6)
