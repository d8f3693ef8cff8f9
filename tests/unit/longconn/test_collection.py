from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from longconn import collection
from longconn.collection import PauseMeter


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Give the collector back as it was."""
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks[:] = callbacks
    gc.unfreeze()


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_tuning_exempts_what_there_is_and_raises_the_thresholds() -> None:
    before = [Node() for _ in range(1_000)]
    collection.tune()
    assert 1_000 <= gc.get_freeze_count()
    assert collection.THRESHOLDS == gc.get_threshold()
    alive = {id(each) for each in gc.get_objects()}
    assert not any(id(each) in alive for each in before)


def test_garbage_made_before_the_tuning_is_collected_rather_than_kept_for_good() -> None:
    gc.disable()
    try:
        for _ in range(100):
            Node()
        collection.tune()
    finally:
        gc.enable()
    gc.unfreeze()
    assert not any(type(each) is Node for each in gc.get_objects())


def test_garbage_made_after_the_tuning_is_still_collected() -> None:
    collection.tune()
    for _ in range(2 * collection.THRESHOLDS[0]):
        Node()
    assert sum(type(each) is Node for each in gc.get_objects()) < 1.5 * collection.THRESHOLDS[0]


def test_a_meter_tells_each_pause_and_its_generation() -> None:
    moments = iter([0.0, 0.25, 5.0, 5.5])
    pauses: list[tuple[float, int]] = []
    meter = PauseMeter(lambda seconds, generation: pauses.append((seconds, generation)), clock=lambda: next(moments))
    gc.disable()
    try:
        meter.start()
        meter.start()
        gc.collect(0)
        gc.collect()
        meter.stop()
        meter.stop()
        gc.collect()
    finally:
        gc.enable()
    assert [(0.25, 0), (0.5, 2)] == pauses


def test_a_meter_that_starts_within_a_collection_waits_for_the_next_one() -> None:
    pauses: list[float] = []
    meter = PauseMeter(lambda seconds, generation: pauses.append(seconds))
    gc.disable()
    try:

        def start_late(phase: str, details: object) -> None:
            gc.callbacks.remove(start_late)
            meter.start()

        gc.callbacks.append(start_late)
        gc.collect()
        first = len(pauses)
        gc.collect()
        meter.stop()
    finally:
        gc.enable()
    assert 1 == len(pauses) - first
    assert all(seconds >= 0 for seconds in pauses)
