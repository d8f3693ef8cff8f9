"""A second account of what a circuit should do, to be held beside the core.

`Account` was written from what the documentation promises and shares nothing with the core: it is one object that changes,
keeps whatever has happened, and looks through all of it to say what is the case.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from resilience.core.breaker import BreakerPolicy, Event, Permit

__all__ = ["HANDS", "Account", "Probe"]

HANDS = {
    Event.OPEN: "open",
    Event.CLOSE: "closed",
    Event.HALF_OPEN: "half-open",
    Event.FORCE_OPEN: "forced-open",
    Event.FORCE_CLOSED: "forced-closed",
    Event.DISABLE: "disabled",
    Event.MEASURE: "metrics-only",
}


@dataclass
class Probe:
    """A call that was let through a half-open circuit."""

    number: int
    ends: float
    place_was_given_away: bool = False
    result: str = ""


@dataclass
class Account:
    """What should be the case. `moves` is how often it moved; everything below them is since the last move."""

    policy: BreakerPolicy
    state: str = "closed"
    moves: int = 0
    ends: float | None = None
    failed_in_a_row: int = 0
    probes: list[Probe] = field(default_factory=list)
    votes: dict[str, float] = field(default_factory=dict)

    def move(self, state: str, ends: float | None = None) -> None:
        self.state, self.ends, self.moves = state, ends, self.moves + 1
        self.probes, self.votes = [], {}
        if state in ("closed", "forced-closed", "disabled", "metrics-only"):
            self.failed_in_a_row = 0

    def open(self, now: float, chance: float, pause: float) -> None:
        self.failed_in_a_row += 1
        lasts = self.policy.reset_timeout
        for _ in range(self.failed_in_a_row - 1):
            lasts = min(self.policy.open_time_cap, lasts * self.policy.open_time_growth)
        lasts = max(lasts + lasts * self.policy.open_time_jitter * chance, pause)
        self.move("open", now + min(lasts, self.policy.open_time_cap))

    def look(self, now: float) -> None:
        held = self.state in ("forced-open", "forced-closed", "disabled", "metrics-only")
        if held and self.ends is not None and self.ends <= now:
            self.move("half-open" if self.state == "forced-open" else "closed")

    def under_way(self) -> list[Probe]:
        return [probe for probe in self.probes if not probe.result and not probe.place_was_given_away]

    def admits(self, now: float) -> bool:
        self.look(now)
        if self.state == "open" and self.ends is not None and self.ends <= now:
            self.move("half-open")
        if self.state in ("open", "forced-open"):
            return False
        if self.state != "half-open":
            return True
        if len(self.under_way()) == self.policy.half_open_max_calls:
            for probe in self.under_way():
                probe.place_was_given_away = probe.ends <= now
        if len(self.under_way()) == self.policy.half_open_max_calls:
            return False
        self.probes.append(Probe(len(self.probes) + 1, now + self.policy.probe_lease))
        return True

    def hears(self, permit: Permit, outcome: str, now: float, chance: float, pause: float) -> None:
        self.look(now)
        if permit.generation != self.moves:
            return
        for probe in self.under_way():
            if probe.number == permit.number:
                probe.result = outcome
                if outcome == "failure":
                    self.open(now, chance, pause)
                elif self.succeeded() >= self.policy.success_threshold:
                    self.move("closed")
                return

    def succeeded(self) -> int:
        return sum(probe.result == "success" for probe in self.probes)

    def finds_ill(self, seen: int, now: float, chance: float, pause: float) -> None:
        self.look(now)
        if self.state == "closed" and seen == self.moves:
            self.open(now, chance, pause)

    def hears_vote(self, host: str, seen: int, keep: float, now: float, chance: float, pause: float) -> None:
        self.look(now)
        if self.state == "closed" and seen == self.moves:
            self.votes[host] = now + keep
            self.votes = {each: ends for each, ends in self.votes.items() if ends > now}
            if len(self.votes) >= self.policy.quorum:
                self.open(now, chance, pause)

    def is_moved(self, event: Event, now: float, expires_in: float | None) -> None:
        self.look(now)
        state, ends = HANDS[event], None
        if event is Event.OPEN:
            ends = now + (self.policy.reset_timeout if expires_in is None else expires_in)
            again = max(1, self.failed_in_a_row)
        else:
            again = 0
            if state not in ("closed", "half-open") and expires_in is not None:
                ends = now + expires_in
        self.move(state, ends)
        self.failed_in_a_row = again
