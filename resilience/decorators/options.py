"""What a circuit breaker is given, and the policy that comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from math import inf
from typing import Any, Final, NamedTuple, TypedDict

import pybreaker

from resilience.core.breaker import BreakerPolicy
from resilience.decorators.rules import Pause, ResultRule, Rule
from resilience.ports import Clock, StateStorage

__all__ = ["BreakerOptions", "Setting", "check_number", "given", "policy_of", "settings_of"]

_RATES: Final = ("failure_rate", "slow_call_rate")
_OF_RATES: Final = {
    "window_calls": _RATES,
    "window_seconds": _RATES,
    "minimum_calls": _RATES,
    "slow_call_duration": ("slow_call_rate",),
}
"""What matters only beside one of these."""
_OPTIONS: Final = tuple(field.name for field in fields(BreakerPolicy))


class BreakerOptions(TypedDict, total=False):
    """What `circuit_breaker` takes beside the name; see `CircuitBreaker`."""

    fail_max: int
    reset_timeout: float
    success_threshold: int
    exclude: Iterable[Rule]
    listeners: Sequence[pybreaker.CircuitBreakerListener]
    state_storage: StateStorage
    throw_new_error_on_trip: bool
    ignore: Iterable[Rule]
    record: Iterable[Rule]
    record_result: ResultRule
    ignore_result: ResultRule
    failure_rate: float
    slow_call_rate: float
    slow_call_duration: float
    window_calls: int
    window_seconds: float
    minimum_calls: int
    half_open_max_calls: int
    probe_lease: float
    open_time_growth: float
    open_time_cap: float
    open_time_jitter: float
    quorum: int
    retry_after: Pause
    clock: Clock


class Setting(NamedTuple):
    """A value of a policy, and where it comes from: the "code" that made the breaker, or the "default"."""

    value: Any
    origin: str


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {option: value for option, value in options.items() if value is not None}


def policy_of(given: Mapping[str, Any]) -> BreakerPolicy:
    """The policy with what was given, and for the rest what goes with that. Raises `ValueError` for what is out of range or
    has no effect, and `TypeError` for what is no number."""
    for option, value in given.items():
        if value is not None:
            check_number(option, value)
    reset_timeout = given.get("reset_timeout", 60.0)
    if not 0 <= reset_timeout < inf:
        BreakerPolicy(reset_timeout=reset_timeout)  # refuses it by its name, not by what would follow from it
    chosen = {"probe_lease": max(60.0, reset_timeout), "open_time_cap": 10 * reset_timeout, **given}
    if "failure_rate" in given or "slow_call_rate" in given:
        chosen.setdefault("fail_max", None)
    for option, rates in _OF_RATES.items():
        if option in given and not any(rate in given for rate in rates):
            raise ValueError(f"{option}={given[option]!r} has no effect without a rate: give {' or '.join(rates)} too")
    if "window_seconds" in given:
        chosen.setdefault("window_calls", None)
    elif "window_calls" in given:
        chosen.setdefault("minimum_calls", min(20, given["window_calls"]))
    return BreakerPolicy(**chosen)


def check_number(option: str, value: object) -> None:
    """Return if `value` is a number. Raises `TypeError` naming the `option` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = f", as {option}={value.total_seconds():g} (seconds)" if isinstance(value, timedelta) else ""
        raise TypeError(f"{option}={value!r}: give a number{hint}")


def settings_of(policy: BreakerPolicy, given: Mapping[str, Any]) -> dict[str, Setting]:
    """Every value of the policy, and where it came from."""
    return {option: Setting(getattr(policy, option), "code" if option in given else "default") for option in _OPTIONS}
