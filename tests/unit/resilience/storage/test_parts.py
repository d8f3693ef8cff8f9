"""What of a decision lies in one slot, and what of it may be taken back."""

from __future__ import annotations

from resilience.core.limiter import Charge, Limit
from resilience.storage.parts import Part, Step
from resilience.storage.slots import slot_of

HOURLY = Limit(100, 3_600)


def test_a_part_is_put_asunder_by_keys_and_each_piece_travels_alone() -> None:
    charges = [Charge(scope, "a", HOURLY, 1) for scope in ("x", "y")]
    steps = [Step(place, b"{a}:" + charge.scope.encode(), charge) for place, charge in enumerate(charges)]
    whole = Part(slot_of(b"a"), steps)
    assert b" " in whole.ask().terms[0]
    assert [b"m", b"c"] == [terms.split(b"\r\n")[1][:1] for terms in whole.ask().terms]
    pieces = whole.pieces()
    assert [([b"{a}:x"], [0]), ([b"{a}:y"], [1])] == [
        (piece.keys, [step.place for step in piece.steps]) for piece in pieces
    ]
    assert [b"c", b"c"] == [piece.ask().terms[0].split(b"\r\n")[1][:1] for piece in pieces]
    assert all(piece.alone for piece in pieces)
