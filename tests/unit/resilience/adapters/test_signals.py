"""Events as signals."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

from resilience import MemoryStorage, RateLimiter
from resilience.adapters import signals
from resilience.core.events import EVENT_TYPES, CallSucceeded, LimitExceeded, PolicyEvent, StateChanged
from resilience.events import PROCESS_EVENTS
from resilience.testing import FakeClock


@pytest.fixture(autouse=True)
def _nobody_listens() -> Iterator[None]:
    yield
    for signal in signals.SIGNALS.values():
        signal._clear_state()
    PROCESS_EVENTS.emit(CallSucceeded(policy="nobody's", at=1.0))  # nobody hears of successes any longer
    PROCESS_EVENTS.clear()


def successes_are_wanted() -> bool:
    return PROCESS_EVENTS.wants_successes


def moved(policy: str = "payments") -> StateChanged:
    return StateChanged(policy=policy, at=1.0, old="closed", new="open", cause="test")


def test_every_type_of_event_has_a_signal() -> None:
    assert set(EVENT_TYPES) == set(signals.SIGNALS)
    assert len(EVENT_TYPES) == len(set(map(id, signals.SIGNALS.values())))
    assert all(getattr(signals, name) in signals.SIGNALS.values() for name in signals.__all__ if name != "SIGNALS")


def test_a_receiver_is_told_of_the_policy_and_the_event() -> None:
    heard: list[tuple[str, PolicyEvent]] = []

    @signals.circuit_changed.connect
    def hear(policy: str, event: PolicyEvent) -> None:
        heard.append((policy, event))

    PROCESS_EVENTS.emit(moved())
    assert [("payments", moved())] == heard


def test_a_receiver_may_be_there_for_one_policy_alone() -> None:
    heard: list[str] = []

    def hear(policy: str, event: PolicyEvent) -> None:
        heard.append(policy)

    signals.circuit_changed.connect(hear, sender="".join(["pay", "ments"]))
    for policy in ("payments", "mail"):
        PROCESS_EVENTS.emit(moved(policy))
    assert ["payments"] == heard


def test_one_that_raises_keeps_the_others_from_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def fail(policy: str, event: PolicyEvent) -> None:
        raise RuntimeError("no")

    def hear(policy: str, event: PolicyEvent) -> None:
        heard.append(policy)

    for receiver in (fail, hear):
        signals.circuit_changed.connect(receiver)
    with caplog.at_level(logging.ERROR):
        PROCESS_EVENTS.emit(moved())
    assert ["payments"] == heard
    assert ["a receiver raised at STATE_TRANSITION of circuit 'payments'"] == caplog.messages


def test_a_receiver_may_refuse_a_limited_call_itself() -> None:
    limiter = RateLimiter("1/minute", name="demo", key="k", storage=MemoryStorage(clock=FakeClock()))
    heard: list[LimitExceeded] = []

    @signals.limit_exceeded.connect
    def hear(policy: str, event: LimitExceeded) -> None:
        heard.append(event)
        limiter.try_acquire()  # is refused too, and counted

    for _ in range(2):
        limiter.try_acquire()
    assert [("k", 1)] == [(event.key, event.count) for event in heard]
    assert 2 == limiter.snapshot().denied


def test_a_muted_signal_tells_nobody() -> None:
    heard: list[str] = []

    def hear(policy: str, event: PolicyEvent) -> None:
        heard.append(policy)

    signals.circuit_changed.connect(hear)
    with signals.circuit_changed.muted():
        PROCESS_EVENTS.emit(moved())
    assert [] == heard


def test_successes_are_asked_for_only_while_somebody_hears_of_them() -> None:
    assert not successes_are_wanted()
    heard: list[str] = []

    def hear(policy: str, event: PolicyEvent) -> None:
        heard.append(policy)

    signals.call_succeeded.connect(hear)
    signals.call_succeeded.connect(hear, sender="payments")
    assert successes_are_wanted()
    PROCESS_EVENTS.emit(CallSucceeded(policy="mail", at=1.0))
    assert ["mail"] == heard
    del hear
    gc.collect()
    PROCESS_EVENTS.emit(CallSucceeded(policy="mail", at=1.0))  # finds that nobody is there any longer
    assert not successes_are_wanted()
    signals.call_succeeded.connect(lambda policy, event: heard.append("again"), weak=False)
    PROCESS_EVENTS.emit(CallSucceeded(policy="mail", at=1.0))
    assert ["mail", "again"] == heard
