"""JSON bodies: what is read, and what is refused with which reason."""

from __future__ import annotations

import json

import flask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from werkzeug.exceptions import RequestEntityTooLarge

from service.errors import UnsupportedMediaType, ValidationFailed
from service.routes.bodies import JSON, MERGE_PATCH, json_object

app = flask.Flask("test")


def read(body: bytes, content_type: str | None = JSON, *media_types: str) -> dict[str, object]:
    with app.test_request_context(method="POST", data=body, content_type=content_type):
        return json_object(flask.request, *media_types)


def refusal(body: bytes) -> str:
    with pytest.raises(ValidationFailed) as caught:
        read(body)
    return caught.value.detail


def test_the_members_of_an_object_come_back() -> None:
    assert {"a": "ä", "b": [1, {"c": None}]} == read(b'{"a": "\\u00e4", "b": [1, {"c": null}]}')


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_is_read(content_type: str) -> None:
    assert {} == read(b"{}", content_type)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "text/json", ""])
def test_other_types_are_refused_with_the_right_one(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType, match="Send the body as application/json"):
        read(b"{}", content_type)


def test_a_view_may_accept_several_types() -> None:
    assert {} == read(b"{}", MERGE_PATCH, JSON, MERGE_PATCH)
    with pytest.raises(UnsupportedMediaType, match=r"application/json or application/merge-patch\+json"):
        read(b"{}", "text/plain", JSON, MERGE_PATCH)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON: Expecting value (line 1, column 1)"),
        (b"{", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"{} {}", "not JSON: Extra data"),
        (b'{"a": "line\nbreak"}', "not JSON: Invalid control character"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a": 1, "a": 2}', "gives a name twice"),
        (b'{"a": {"b": 1, "b": 1}}', "gives a name twice"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": 1e999}', "holds a number beyond"),
        (b'{"a": [-1e400]}', "holds a number beyond"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests too deeply"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nests too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "number of too many digits"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_not_one_unambiguous_object_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    assert reason in refusal(body)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert {"a": "🔑"} == read(b'{"a": "\\ud83d\\udd11"}')


def test_a_body_beyond_the_limit_of_the_application_is_left_to_the_application() -> None:
    small = flask.Flask("small")
    small.config["MAX_CONTENT_LENGTH"] = 10
    with (
        small.test_request_context(method="POST", data=b" " * 11, content_type=JSON),
        pytest.raises(RequestEntityTooLarge),
    ):
        json_object(flask.request)


TEXT = some.text(max_size=10)
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda part: some.lists(part, max_size=3) | some.dictionaries(TEXT, part, max_size=3),
    max_leaves=4,
)


@settings(deadline=None, max_examples=50)
@given(some.dictionaries(TEXT, VALUES, max_size=3))
def test_every_object_comes_back_as_it_was_sent(members: dict[str, object]) -> None:
    assert members == read(json.dumps(members, ensure_ascii=False).encode())


@settings(deadline=None)
@given(some.binary(max_size=100) | some.text(alphabet='{}[]",:\\ue019-. NaInf', max_size=60).map(str.encode))
def test_nothing_breaks_the_reader(body: bytes) -> None:
    try:
        members = read(body)
    except ValidationFailed:
        return
    assert isinstance(members, dict)
    json.dumps(members, ensure_ascii=False).encode()
