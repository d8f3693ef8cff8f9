"""Crowds of threads, for what has to hold when many ask at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["crowd"]

T = TypeVar("T")


def crowd(threads: int, work: Callable[[int], T]) -> list[T]:
    """Let so many threads do `work` at once, each given its number. What the first to fail raised is raised again."""
    answers: list[T] = []
    errors: list[BaseException] = []
    gate = threading.Barrier(threads)

    def one(thread: int) -> None:
        try:
            gate.wait(30)
            answers.append(work(thread))
        except BaseException as error:  # noqa: BLE001  # raised again by the test's own thread
            errors.append(error)

    everybody = [threading.Thread(target=one, args=(thread,), daemon=True) for thread in range(threads)]
    for thread in everybody:
        thread.start()
    for thread in everybody:
        thread.join(60)
    if errors:
        raise errors[0]
    waiting = sum(thread.is_alive() for thread in everybody)
    if waiting:
        raise AssertionError(f"{waiting} of {threads} threads are still waiting after a minute")
    return answers
