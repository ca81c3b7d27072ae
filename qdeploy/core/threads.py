"""A task in a thread beside work in the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def beside(task: Callable[[], T], other: Callable[[], None]) -> T:
    """Do ``task`` in a thread and ``other`` here, and give the result or raise the error of the task.

    It pays where the task waits or leaves the interpreter to others. The task must not import: a thread that does while
    Ctrl-C stops an import of the main thread may wait for ever.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(task())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run)
    try:
        thread.start()
    except RuntimeError:  # the system gives no more threads
        return task()
    other()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
