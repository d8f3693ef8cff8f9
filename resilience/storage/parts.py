"""What of a decision lies in one slot of a cluster, and what of it may be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from resilience.core.limiter import Charge, Refund
from resilience.errors import StorageUnavailable
from resilience.storage.carrier import Question
from resilience.storage.nodes import Address
from resilience.storage.script import charge_terms, refund_terms, returned_terms
from resilience.storage.slots import slot_of

__all__ = ["Asked", "Part", "Step", "group_of"]


class Asked(Question):
    """A question that knows which others may share its call."""

    __slots__ = ("group",)

    def __init__(self, keys: Sequence[bytes], terms: Sequence[bytes], group: object, *, asking: bool = False) -> None:
        super().__init__(keys, terms, asking=asking)
        self.group = group


def group_of(question: Question) -> object:
    """What the questions of one call have in common: the slot."""
    # One that the carrier makes itself, to give back what was taken for somebody who has left, is a plain one.
    return question.group if isinstance(question, Asked) else slot_of(question.keys[0])


class Step(NamedTuple):
    """One charge or refund: its place in the decision, and the key of its bucket."""

    place: int
    key: bytes
    item: Charge | Refund


class Part:
    """What of a decision, or of refunds, lies in one slot."""

    __slots__ = ("allowed", "alone", "asking", "failure", "open", "owner", "question", "slot", "steps")

    def __init__(self, slot: int, steps: Sequence[Step], *, alone: bool = False) -> None:
        self.slot = slot
        self.steps = steps
        self.alone = alone
        """Whether its call carries nothing else: keys that lie elsewhere would take it with them."""
        self.asking = False
        self.owner: Address | None = None
        self.question: Question
        self.open = False
        """Whether the question is on its way, and nobody waits for it yet."""
        self.allowed = False
        self.failure: StorageUnavailable | None = None

    @property
    def keys(self) -> list[bytes]:
        """The keys of its buckets."""
        return [step.key for step in self.steps]

    def ask(self) -> Question:
        """A question about all of it."""
        last = self.steps[-1]
        terms = [_terms(step.item, more=step is not last) for step in self.steps]
        return Asked(self.keys, terms, self if self.alone else self.slot, asking=self.asking)

    def pieces(self) -> list[Part]:
        """One part for each key: all of them have moved, or none."""
        by_key: dict[bytes, list[Step]] = {}
        for step in self.steps:
            by_key.setdefault(step.key, []).append(step)
        return [Part(self.slot, steps, alone=True) for steps in by_key.values()]

    def returned(self, seconds: float) -> Question | None:
        """The refund of what it took at most so many seconds ago; None when that comes to nothing."""
        back = [
            (key, terms)
            for key, charged, level in zip(self.keys, self.question.terms, self.question.levels, strict=True)
            if (terms := returned_terms(charged, level, seconds)) is not None
        ]
        if not back:
            return None
        return Asked([key for key, _ in back], [terms for _, terms in back], self.slot, asking=self.asking)


def _terms(item: Charge | Refund, *, more: bool) -> bytes:
    if isinstance(item, Charge):
        return charge_terms(item.limit, item.cost, item.floor, more=more)
    cost = None if item.cost is None else item.cost * item.limit.unit
    return refund_terms(item.limit, cost, item.expected)
