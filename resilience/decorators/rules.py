"""What the end of a call says about the health of what was called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any

from resilience.core.breaker import Outcome
from resilience.greenlets import INTERRUPTIONS

__all__ = ["FailedResult", "Pause", "ResultRule", "Rule", "Rules", "check_rule", "matches", "pause_of", "rules_of"]

Rule = type[BaseException] | Callable[[Any], bool]
"""An exception type, or a predicate that is given the exception."""

ResultRule = Callable[[Any], bool]
"""A predicate that is given what a call returned."""

Pause = Callable[[Any], float | None]
"""Takes the exception or the result that counts as a failure, returns for how many seconds to leave the backend alone."""


class FailedResult(Exception):
    """What listeners are told of where a call returned something that counts as a failure. Never raised; `result` is what
    was returned."""

    def __init__(self, result: object) -> None:
        super().__init__(f"the result counts as a failure: {result!r:.200}")
        self.result = result


def matches(error: BaseException, rules: Iterable[Rule]) -> bool:
    """Whether any of the rules speaks of `error`."""
    for rule in rules:
        # isinstance, not `type(rule) is type`: an exception class with a metaclass is a class too.
        if isinstance(rule, type):
            if isinstance(error, rule):
                return True
        elif rule(error):
            return True
    return False


def pause_of(ended: object) -> float | None:
    """The `retry_after` of an exception or a result, where it has one: the default of `CircuitBreaker.retry_after`."""
    return getattr(ended, "retry_after", None)


class Rules:
    """Beside what is excluded, which pybreaker's breaker keeps itself: what is ignored, what alone counts as a failure, and
    what counts as either though it was returned and not raised."""

    __slots__ = ("_pause", "ignore", "ignore_result", "record", "record_result")

    def __init__(
        self,
        ignore: Iterable[Rule],
        record: Iterable[Rule] | None,
        record_result: ResultRule | None,
        ignore_result: ResultRule | None,
        pause: Pause,
    ) -> None:
        self.ignore = rules_of("ignore", ignore)
        self.record = None if record is None else rules_of("record", record)
        for name, rule in (
            ("record_result", record_result), ("ignore_result", ignore_result), ("retry_after", pause),
        ):  # fmt: skip
            if rule is not None and not callable(rule):
                raise TypeError(f"{name}={rule!r}: give a function of one argument")
        self.record_result = record_result
        self.ignore_result = ignore_result
        self._pause = pause

    @property
    def parts(self) -> dict[str, object]:
        """What they consist of, by the names of the options, to be compared."""
        return {
            "ignore": self.ignore,
            "record": self.record,
            "record_result": self.record_result,
            "ignore_result": self.ignore_result,
            "retry_after": self._pause,
        }

    @property
    def judge_results(self) -> bool:
        """Whether what a call returns makes a difference."""
        return self.record_result is not None or self.ignore_result is not None

    def outcome_of_error(self, error: BaseException, is_system_error: Callable[[Any], bool]) -> Outcome:
        """What a call says that raised `error`."""
        if isinstance(error, INTERRUPTIONS) or matches(error, self.ignore):
            return Outcome.IGNORED
        if not is_system_error(error) or (self.record is not None and not matches(error, self.record)):
            return Outcome.SUCCESS
        return Outcome.FAILURE

    def outcome_of_result(self, result: object) -> Outcome:
        """What a call says that returned `result`."""
        if self.ignore_result is not None and self.ignore_result(result):
            return Outcome.IGNORED
        if self.record_result is not None and self.record_result(result):
            return Outcome.FAILURE
        return Outcome.SUCCESS

    def pause(self, ended: object) -> float:
        """For how many seconds the backend asks to be left alone; 0.0 where it does not say so in a number."""
        seconds: object = self._pause(ended)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not isfinite(seconds):
            return 0.0
        return max(0.0, float(seconds))


def rules_of(name: str, rules: Any) -> tuple[Rule, ...]:
    """The rules of the option `name`. Raises `TypeError` for what is no list of them."""
    if isinstance(rules, (type, str)) or not isinstance(rules, Iterable):
        raise TypeError(f"{name}={rules!r}: give a list of exception types and predicates, as {name}=[OSError]")
    found = tuple(rules)
    for rule in found:
        check_rule(name, rule)
    return found


def check_rule(name: str, rule: Any) -> None:
    """Return if `rule` can be one of the option `name`. Raises `TypeError` otherwise."""
    if not callable(rule):
        raise TypeError(f"{name} holds {rule!r}: give exception types, or predicates that take the exception")
