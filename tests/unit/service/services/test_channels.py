"""The rules about channels: who may do what, what a command is, what a message looks like."""

from __future__ import annotations

import contextlib
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as some

from longconn.channels.errors import (
    ChannelForbidden,
    ChannelNameError,
    ChannelsUnavailable,
    MessageRefused,
    PositionError,
)
from longconn.channels.ports import Message, Position
from resilience import RateLimiter, open_storage
from service import errors
from service.errors import Forbidden, PayloadTooLarge, ServiceError, TooManyRequests, ValidationFailed
from service.model import Caller, Participant
from service.services.channels import (
    Action,
    ChannelService,
    Ping,
    Publication,
    Publish,
    Subscribe,
    Unsubscribe,
    describe,
    envelope,
    parse_command,
    parse_publication,
)
from tests.support.channels import HeldChannels

ANN = Participant("user-7", Caller(user_id=7, role="member"))
ROOT = Participant("user-1", Caller(user_id=1, role="admin"))
GUEST = Participant("guest-x")
JSON = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63 - 1)
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(),
    lambda children: some.lists(children, max_size=3) | some.dictionaries(some.text(), children, max_size=3),
    max_leaves=8,
)


def failing(failure: Exception) -> HeldChannels:
    channels = HeldChannels()
    channels.failure = failure
    return channels


def service(channels: HeldChannels | None = None, limit: int = 100) -> ChannelService:
    return ChannelService(channels or HeldChannels(), message_limit=limit)


def allowed(who: Participant, channel: str) -> set[str]:
    found = set()
    for action in get_args(Action):
        try:
            service().check(who, channel, action)
        except Forbidden:
            continue
        found.add(action)
    return found


ALL = {"subscribe", "publish", "history"}


@pytest.mark.parametrize(
    ("channel", "guest", "member", "admin"),
    [
        ("live", {"subscribe", "history"}, {"subscribe", "history"}, {"subscribe", "history"}),
        ("demo:lobby", ALL, ALL, ALL),
        ("demo:beach", ALL, ALL, ALL),
        ("demo:mine", set(), ALL, ALL),
        ("demo:", set(), ALL, ALL),
        ("user:7", set(), ALL, ALL),
        ("user:7:inbox", set(), ALL, ALL),
        ("user:", set(), set(), ALL),
        ("user:77", set(), set(), ALL),
        ("user:77:7", set(), set(), ALL),
        ("user:07", set(), set(), ALL),
        ("orders", set(), ALL, ALL),
        ("demo", set(), ALL, ALL),
    ],
)
def test_who_may_do_what(channel: str, guest: set[str], member: set[str], admin: set[str]) -> None:
    assert (guest, member, admin) == (allowed(GUEST, channel), allowed(ANN, channel), allowed(ROOT, channel))


def test_what_is_published_says_who_did_it() -> None:
    channels = HeldChannels()
    position = service(channels).publish(ANN, "orders", Publication({"n": 1}, event="placed", key="k"))
    (message,) = channels.messages
    assert (Position(5, 1), '{"from":"user-7","data":{"n":1}}') == (position, message.data)
    assert {
        "channel": "orders",
        "position": "5-1",
        "at": 12.346,
        "from": "user-7",
        "data": {"n": 1},
        "event": "placed",
    } == describe(message)


def test_a_publisher_cannot_say_to_be_another() -> None:
    channels = HeldChannels()
    service(channels).publish(GUEST, "demo:lobby", Publication({"from": "user-1", "data": "hello"}))
    assert ("guest-x", {"from": "user-1", "data": "hello"}) == (
        describe(channels.messages[0])["from"],
        describe(channels.messages[0])["data"],
    )


def test_a_guests_message_is_small() -> None:
    channels = service(limit=65_536)
    channels.publish(GUEST, "demo:lobby", Publication("x" * 4_000))
    channels.publish(ANN, "demo:lobby", Publication("x" * 4_096))
    with pytest.raises(PayloadTooLarge, match="A guest's message may hold at most 4096 bytes"):
        channels.publish(GUEST, "demo:lobby", Publication("x" * 4_096))


def test_a_guest_says_so_much_at_a_time_and_others_as_much_as_they_like() -> None:
    limiter = RateLimiter("1/minute", burst=3, name="guests", storage=open_storage("memory://"))
    channels = ChannelService(HeldChannels(), message_limit=100, guests=limiter)
    for _ in range(3):
        channels.publish(GUEST, "demo:lobby", Publication(1))
    with pytest.raises(TooManyRequests) as caught:
        channels.publish(GUEST, "demo:lobby", Publication(1))
    assert 0 < (caught.value.retry_after or 0) <= 60
    for _ in range(5):
        channels.publish(ANN, "demo:lobby", Publication(1))
    channels.publish(Participant("guest-y"), "demo:lobby", Publication(1))


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_was_published_can_be_shown_within_others_however_deep_it_is() -> None:
    channels = HeldChannels()
    rules = service(channels, limit=10_000)
    rules.publish(ANN, "orders", Publication(nested(199)))
    for levels in (*range(206, 260), 10_000):
        with pytest.raises(ValidationFailed, match="nested less than 200 deep"):
            rules.publish(ANN, "orders", Publication(nested(levels)))
    (deepest,) = channels.messages
    shown = orjson.loads(orjson.dumps({"messages": [[[[describe(deepest)]]]]}))
    assert nested(199) == shown["messages"][0][0][0][0]["data"]


@pytest.mark.parametrize("event", ["error", "message", "missed", "open"])
def test_nobody_publishes_what_a_stream_says_itself(event: str) -> None:
    with pytest.raises(ValidationFailed, match="/event must be none of"):
        parse_publication({"data": 1, "event": event})


def test_nobody_publishes_where_they_may_not() -> None:
    channels = HeldChannels()
    with pytest.raises(Forbidden):
        service(channels).publish(GUEST, "orders", Publication(1))
    with pytest.raises(Forbidden):
        service(channels).history(GUEST, "orders", None)
    assert [] == channels.messages


@pytest.mark.parametrize(("data", "fits"), [("é" * 37, True), ("é" * 38, False)])
def test_a_message_is_as_large_as_it_may_be(data: str, fits: bool) -> None:
    channels = service(limit=len(envelope("user-7", "é" * 37).encode()))
    if fits:
        channels.publish(ANN, "orders", Publication(data))
    else:
        with pytest.raises(PayloadTooLarge, match="at most"):
            channels.publish(ANN, "orders", Publication(data))


@pytest.mark.parametrize("data", ["\ud800", 2**64, float, {"a": {1, 2}}])
def test_what_is_no_json_is_refused(data: Any) -> None:
    with pytest.raises(ValidationFailed, match="/data must be JSON"):
        service().publish(ANN, "orders", Publication(data))


@given(JSON)
def test_any_json_arrives_as_it_was(data: Any) -> None:
    message = Message("c", Position(1, 1), envelope("user-7", data))
    assert ("user-7", data) == (describe(message)["from"], describe(message)["data"])


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("plain text", "plain text"),
        (b"plain \xff", "plain \ufffd"),
        ('{"a": 1}', {"a": 1}),
        ('{"from": 1, "data": 2}', {"from": 1, "data": 2}),
        ('{"from": "x", "data": 2, "more": 3}', {"from": "x", "data": 2, "more": 3}),
    ],
)
def test_what_others_publish_has_no_sender(stored: str | bytes, shown: object) -> None:
    document = describe(Message("c", Position(1, 1), stored))
    assert (None, shown) == (document["from"], document["data"])


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ChannelNameError("no"), ValidationFailed),
        (PositionError("no"), ValidationFailed),
        (MessageRefused("too large"), PayloadTooLarge),
        (ChannelForbidden("u", "c", "publish"), Forbidden),
        (ChannelsUnavailable("full"), errors.ChannelsUnavailable),
    ],
)
def test_what_channels_raise_has_a_code_of_the_registry(failure: Exception, kind: type[ServiceError]) -> None:
    with pytest.raises(kind):
        service(failing(failure)).publish(ANN, "orders", Publication(1))


def test_the_newest_few_begin_after_the_one_before_them() -> None:
    channels = HeldChannels()
    rules = service(channels)
    assert Position(5, 0) == rules.start_of_recent(ANN, "orders", 3)
    for number in range(5):
        rules.publish(ANN, "orders", Publication(number))
    assert Position(5, 2) == rules.start_of_recent(ANN, "orders", 3)


@pytest.mark.parametrize(
    ("members", "command"),
    [
        ({"type": "subscribe", "channel": "c"}, Subscribe("c")),
        ({"type": "subscribe", "channel": "c", "since": "a-3", "id": 1}, Subscribe("c", Position(10, 3))),
        ({"type": "subscribe", "channel": "c", "recent": 20}, Subscribe("c", recent=20)),
        ({"type": "unsubscribe", "channel": "c"}, Unsubscribe("c")),
        ({"type": "publish", "channel": "c", "data": None}, Publish("c", Publication(None))),
        (
            {"type": "publish", "channel": "c", "data": [1], "event": "e", "key": "k"},
            Publish("c", Publication([1], "e", "k")),
        ),
        ({"type": "ping", "id": "x"}, Ping()),
    ],
)
def test_a_command_is_what_its_members_say(members: dict[str, object], command: object) -> None:
    assert command == parse_command(members)


@pytest.mark.parametrize(
    ("members", "pointers"),
    [
        ({}, ["/type"]),
        ({"type": "shout"}, ["/type"]),
        ({"type": ["publish"]}, ["/type"]),
        ({"type": "subscribe"}, ["/channel"]),
        ({"type": "subscribe", "channel": ""}, ["/channel"]),
        ({"type": "subscribe", "channel": 5}, ["/channel"]),
        ({"type": "subscribe", "channel": "c", "since": "later"}, ["/since"]),
        ({"type": "subscribe", "channel": "c", "recent": True}, ["/recent"]),
        ({"type": "subscribe", "channel": "c", "recent": -1}, ["/recent"]),
        ({"type": "subscribe", "channel": "c", "recent": 1001}, ["/recent"]),
        ({"type": "subscribe", "channel": "c", "recent": 1, "since": "a-1"}, ["/recent"]),
        ({"type": "publish"}, ["/channel", "/data"]),
        ({"type": "publish", "channel": "c", "data": 1, "event": "x\n", "key": "k" * 65}, ["/event", "/key"]),
        ({"type": "ping", "channel": "c"}, ["/channel"]),
    ],
)
def test_a_command_that_is_none_says_what_is_wrong(members: dict[str, object], pointers: list[str]) -> None:
    with pytest.raises(ValidationFailed) as caught:
        parse_command(members)
    assert pointers == [pointer for pointer, _ in caught.value.fields]


@given(some.dictionaries(some.sampled_from(["type", "channel", "since", "recent", "data", "id", "x"]), JSON))
def test_any_json_is_a_command_or_a_refusal(members: dict[str, object]) -> None:
    with contextlib.suppress(ValidationFailed):
        parse_command(members)


def test_a_publication_needs_data_and_takes_nothing_else() -> None:
    assert Publication(0, event="e") == parse_publication({"data": 0, "event": "e"})
    with pytest.raises(ValidationFailed) as caught:
        parse_publication({"event": 5, "channel": "c"})
    assert {"/data", "/event", "/channel"} == {pointer for pointer, _ in caught.value.fields}
