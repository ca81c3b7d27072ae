"""What a session of ONNX Runtime is opened with, by its C library and by its Python binding."""

SILENT = 4
"""Log level: fatal errors only; all others are raised."""
WAITING = {"session.intra_op.allow_spinning": "0"}
"""Threads that wait sleep: spinning ones are at best 1.5 times as fast alone, take 1.5 times as long beside a busy
neighbour, and burn a core between inferences (benchmarks/threads.py)."""
