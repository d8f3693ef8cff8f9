"""The slots of a cluster."""

from __future__ import annotations

import pytest

from resilience.storage.redis import Keys
from resilience.storage.slots import SLOTS, addresses, owners, primaries, slot_of, tag_within


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # the test vector of the cluster specification
        (b"foo", 12_182),
        (b"{foo}", 12_182),
        (b"before{foo}after", 12_182),
        (b"{foo}{bar}", 12_182),
    ],
)
def test_a_key_lies_where_its_hash_tag_says(key: bytes, slot: int) -> None:
    assert slot == slot_of(key)


def test_a_key_lies_there_also_as_it_travels() -> None:
    keys = Keys("seawall")
    for subject in ("alice", "10.0.0.1", "böse {tag} *:\n", "x" * 500):
        assert {slot_of(keys.key("a", subject).encode())} == {
            slot_of(keys.encoded(scope, subject)) for scope in ("a", "b")
        }


ANSWER = [
    [0, 5_460, [b"10.0.0.1", 7_000, b"id"], [b"10.0.0.2", 7_001, b"id"]],
    [5_461, 10_922, [b"", 7_002, b"id"], [b"?", 7_003, b"id", [b"hostname", b"x"]]],
    [10_924, 16_383, [None, 7_004, b"id"]],
]


def test_a_node_without_a_name_has_the_one_that_it_was_asked_under() -> None:
    table = owners(ANSWER, "asked")
    assert SLOTS == len(table)
    assert [("10.0.0.1", 7_000), ("asked", 7_002), None, ("asked", 7_004)] == [
        table[slot] for slot in (5_460, 5_461, 10_923, -1)
    ]
    assert {("10.0.0.1", 7_000): 0, ("asked", 7_002): 5_461, ("asked", 7_004): 10_924} == primaries(table)
    assert [
        ("10.0.0.1", 7_000),
        ("10.0.0.2", 7_001),
        ("asked", 7_002),
        ("asked", 7_003),
        ("asked", 7_004),
    ] == addresses(ANSWER, "asked")


@pytest.mark.parametrize("slot", [0, 8_191, 16_383])
def test_there_is_a_tag_for_every_slot(slot: int) -> None:
    assert slot == slot_of(b"{%b}" % tag_within(slot).encode())
