"""Members of an input: every fault in one answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from service.errors import ValidationFailed
from service.services.members import check_members


def short(value: str) -> str | None:
    return None if len(value) < 3 else "must be short"


RULES = {"one": short, "two": short}


def faults(members: dict[str, object], *, required: tuple[str, ...] = ("one", "two")) -> dict[str, str]:
    with pytest.raises(ValidationFailed) as caught:
        check_members(members, RULES, required=required)
    return dict(caught.value.fields)


def test_members_without_a_fault_come_back() -> None:
    assert {"one": "a", "two": "b"} == check_members({"one": "a", "two": "b"}, RULES, required=RULES)


def test_members_that_are_not_required_may_be_missing() -> None:
    assert {"two": "b"} == check_members({"two": "b"}, RULES, required=())


def test_every_fault_is_named_at_once() -> None:
    expected = {"/one": "must be short", "/two": "is required", "/three": "is not known here; known are one, two"}
    assert expected == faults({"one": "long", "three": "x"})


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], {}])
def test_what_is_no_string_is_refused_and_null_with_it(value: object) -> None:
    assert {"/one": "must be a string"} == faults({"one": value}, required=())


def test_the_detail_names_the_first_fault_and_counts_the_others() -> None:
    with pytest.raises(ValidationFailed, match=r"^/one is required \(1 more\)\.$"):
        check_members({}, RULES, required=("one", "two"))


def test_a_single_fault_is_the_whole_detail() -> None:
    with pytest.raises(ValidationFailed, match=r"^/one must be short\.$"):
        check_members({"one": "long"}, RULES, required=())


def test_names_are_escaped_as_json_pointers() -> None:
    assert ["/a~1b~0c"] == list(faults({"a/b~c": ""}, required=()))


def test_an_answer_does_not_grow_with_its_question() -> None:
    with pytest.raises(ValidationFailed) as caught:
        check_members({f"{number}{'x' * 1000}": "" for number in range(1000)}, RULES, required=())
    assert 20 == len(caught.value.fields)
    assert len(str(caught.value.fields)) < 4000


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(max_size=5),
    lambda part: some.lists(part, max_size=2) | some.dictionaries(some.text(max_size=3), part, max_size=2),
    max_leaves=4,
)


@settings(deadline=None)
@given(some.dictionaries(some.sampled_from(["one", "two"]) | some.text(max_size=5), JSON, max_size=4))
def test_whatever_comes_is_either_accepted_whole_or_refused_with_its_faults(members: dict[str, object]) -> None:
    acceptable = set(members) <= set(RULES) and all(isinstance(v, str) and len(v) < 3 for v in members.values())
    if acceptable:
        assert members == check_members(members, RULES, required=())
    else:
        assert len(faults(members, required=())) >= 1
