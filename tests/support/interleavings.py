"""Every order in which actors can work on one circuit, walked to the end: after jcstress, on values instead of threads.

A circuit is kept where somebody may replace it only if nobody else has meanwhile. So an actor reads, computes, and replaces,
and begins anew when it was too late; between any two of these steps any other actor may take any of its own. As everything
is a value, two orders that lead to the same situation are walked on together: thousands of orders are hundreds of situations,
and none is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from resilience.core import breaker
from resilience.core.breaker import (
    HALF_OPEN,
    PASSING,
    TRANSITIONS,
    BreakerPolicy,
    Circuit,
    Event,
    Outcome,
    Permit,
    Refusal,
)

__all__ = ["Actor", "Core", "Fault", "World", "by_hand", "caller", "later", "probe", "voter", "walk", "withdrawal"]


class Core(NamedTuple):
    """The functions under test, so that a test can put a wrong one among them. `compares` is whether who replaces a circuit
    looks first whether it is still the one that was read."""

    admit: Callable[..., Any] = breaker.admit
    settle: Callable[..., Any] = breaker.settle
    trip: Callable[..., Any] = breaker.trip
    vote: Callable[..., Any] = breaker.vote
    withdraw: Callable[..., Any] = breaker.withdraw
    force: Callable[..., Any] = breaker.force
    compares: bool = True


class World(NamedTuple):
    """What all actors share: the circuit, how often it was replaced, and the time."""

    circuit: Circuit
    version: int = 0
    now: float = 0.0


class Memory(NamedTuple):
    """What one actor knows: its next step, what it has read, and what it was told."""

    step: int = 0
    read: Circuit | None = None
    version: int = 0
    permit: Permit | None = None
    said: tuple[str, ...] = ()


Step = Callable[[Core, World, Memory], tuple[World, Memory]]
Actor = tuple[Step, ...]


class Fault(AssertionError):
    """Something that no order may lead to."""


# -- actors ------------------------------------------------------------------------------------------------------------


def probe(policy: BreakerPolicy, outcome: Outcome) -> Actor:
    """Asks for leave where the circuit is kept, calls if it has leave, and tells the outcome. Says "probe", "pass" or
    "refused"."""
    return (*_update(partial(_asking, policy)), *_update(partial(_telling, policy, outcome)))


def caller(policy: BreakerPolicy) -> Actor:
    """Looks at the circuit once, calls if it lets all pass, and fails as often as opens it. Says "pass" with the generation
    it has seen, or "refused"."""
    return (_look, *_update(partial(_tripping, policy)))


def voter(policy: BreakerPolicy, host: str) -> Actor:
    """A caller of a circuit that many hosts share: it votes."""
    return (_look, *_update(partial(_voting, policy, host)))


def withdrawal(host: str) -> Actor:
    """Takes the vote of a host back."""

    def withdrawing(core: Core, circuit: Circuit, now: float, memory: Memory) -> tuple[Circuit, Memory]:
        return core.withdraw(circuit, host), memory

    return _update(withdrawing)


def by_hand(policy: BreakerPolicy, event: Event, *, expires_in: float | None = None) -> Actor:
    """Somebody moves the circuit."""

    def forcing(core: Core, circuit: Circuit, now: float, memory: Memory) -> tuple[Circuit, Memory]:
        return core.force(circuit, policy, event, now, expires_in=expires_in), memory

    return _update(forcing)


def later(*seconds: float) -> Actor:
    """Time passes, in so many steps."""

    def passing(by: float, core: Core, world: World, memory: Memory) -> tuple[World, Memory]:
        return world._replace(now=world.now + by), memory._replace(step=memory.step + 1)

    return tuple(partial(passing, by) for by in seconds)


Change = Callable[[Core, Circuit, float, Memory], tuple[Circuit, Memory]]


def _update(change: Change) -> Actor:
    """Read, and replace what was read unless somebody else was faster: then read again."""

    def read(core: Core, world: World, memory: Memory) -> tuple[World, Memory]:
        return world, memory._replace(step=memory.step + 1, read=world.circuit, version=world.version)

    def replace(core: Core, world: World, memory: Memory) -> tuple[World, Memory]:
        assert memory.read is not None
        after, told = change(core, memory.read, world.now, memory)
        if after is not memory.read:
            if core.compares and memory.version != world.version:
                return world, memory._replace(step=memory.step - 1)
            world = world._replace(circuit=after, version=world.version + 1)
        return world, told._replace(step=memory.step + 1, read=None, version=0)

    return read, replace


def _look(core: Core, world: World, memory: Memory) -> tuple[World, Memory]:
    circuit = breaker.expire(world.circuit, world.now)
    if circuit.state not in PASSING:
        return world, memory._replace(step=memory.step + 1, said=("refused",))
    return world, memory._replace(
        step=memory.step + 1, permit=circuit.permit, said=(f"pass {circuit.generation} {circuit.state}",)
    )


def _asking(policy: BreakerPolicy, core: Core, circuit: Circuit, now: float, memory: Memory) -> tuple[Circuit, Memory]:
    after, answer = core.admit(circuit, policy, now)
    if isinstance(answer, Refusal):
        return after, memory._replace(said=(*memory.said, "refused"))
    return after, memory._replace(permit=answer, said=(*memory.said, "probe" if answer.number else "pass"))


def _telling(
    policy: BreakerPolicy, outcome: Outcome, core: Core, circuit: Circuit, now: float, memory: Memory
) -> tuple[Circuit, Memory]:
    if memory.permit is None or not memory.permit.number:
        return circuit, memory
    after = core.settle(circuit, policy, memory.permit, outcome, now)
    if after is not circuit and memory.permit.generation != circuit.generation and after.event is not Event.EXPIRE:
        raise Fault(f"the result of generation {memory.permit.generation} moved {circuit} to {after}")
    return after, memory


def _tripping(
    policy: BreakerPolicy, core: Core, circuit: Circuit, now: float, memory: Memory
) -> tuple[Circuit, Memory]:
    if memory.permit is None:
        return circuit, memory
    return core.trip(circuit, policy, memory.permit.generation, now), memory


def _voting(
    policy: BreakerPolicy, host: str, core: Core, circuit: Circuit, now: float, memory: Memory
) -> tuple[Circuit, Memory]:
    if memory.permit is None:
        return circuit, memory
    return core.vote(circuit, policy, host, memory.permit.generation, 60.0, now), memory


# -- the walk ----------------------------------------------------------------------------------------------------------

Situation = tuple[World, tuple[Memory, ...]]


class Walked(NamedTuple):
    """What came of all orders: how many there are, of how many situations, and in how many of them each outcome."""

    orders: int
    situations: int
    outcomes: Counter[str]


def walk(
    policy: BreakerPolicy,
    circuit: Circuit,
    actors: Sequence[Actor],
    *,
    now: float = 0.0,
    core: Core | None = None,
    told: Callable[[World, Iterable[tuple[str, ...]]], str],
) -> Walked:
    """Let the actors take their steps in every order. `told` puts what they end with into words.

    Raises `Fault` at a step that breaks what holds at every step: a circuit moves along its table, one generation at a time,
    and has no more probes under way than permitted.
    """
    core = core or Core()
    first: Situation = (World(circuit, now=now), tuple(Memory() for _ in actors))
    orders: dict[Situation, int] = {}
    outcomes: dict[Situation, str] = {}
    followers: dict[Situation, list[Situation]] = {}
    pending = [first]
    while pending:  # depth first; a situation is counted when all that follow it are
        situation = pending[-1]
        if situation in orders:
            pending.pop()
        elif situation not in followers:
            followers[situation] = list(_after(policy, core, situation, actors))
            pending += [each for each in followers[situation] if each not in orders]
        else:
            pending.pop()
            follow = followers[situation]
            orders[situation] = sum(orders[each] for each in follow) if follow else 1
            if not follow:
                outcomes[situation] = told(situation[0], [memory.said for memory in situation[1]])
    reached: dict[Situation, int] = {first: 1}
    for situation in reversed(orders):  # whoever follows was counted before
        for each in followers[situation]:
            reached[each] = reached.get(each, 0) + reached[situation]
    found: Counter[str] = Counter()
    for situation, outcome in outcomes.items():
        found[outcome] += reached[situation]
    return Walked(orders[first], len(orders), found)


def _after(policy: BreakerPolicy, core: Core, situation: Situation, actors: Sequence[Actor]) -> Iterable[Situation]:
    world, memories = situation
    for index, (actor, memory) in enumerate(zip(actors, memories, strict=True)):
        if memory.step < len(actor):
            after, told = actor[memory.step](core, world, memory)
            _hold_to_the_rules(policy, world, after)
            yield after, (*memories[:index], told, *memories[index + 1 :])


def _hold_to_the_rules(policy: BreakerPolicy, before: World, after: World) -> None:
    # What was forced and has expired may be left by the same step that moves on from there.
    old, new = before.circuit, after.circuit
    old = breaker.expire(old, before.now) if new.generation == old.generation + 2 else old
    if new.generation == old.generation:
        if new.state != old.state:
            raise Fault(f"{old} became {new} within one generation")
    elif (
        new.generation != old.generation + 1
        or new.event is None
        or TRANSITIONS.get((old.state, new.event)) != new.state
    ):
        raise Fault(f"{old} became {new}, which is no move of the table")
    if len(new.probes) > policy.half_open_max_calls or (new.probes and new.state != HALF_OPEN):
        raise Fault(f"{new} has more probes under way than permitted")
    if len({each.voter for each in new.votes}) != len(new.votes) or len(new.votes) >= max(policy.quorum, 2):
        raise Fault(f"{new} has more votes than voters, or as many as open it")
