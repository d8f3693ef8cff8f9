"""What can be asked for, and how it is divided."""

from __future__ import annotations

import json
import resource
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.errors import LongConnError
from longconn.load.__main__ import plan_of
from longconn.load.plan import PER_ADDRESS, Plan, PlanError, Share, addresses_in, per_process

URLS = {"ws": "ws://127.0.0.1:8000/ws/{number}?a=1", "sse": "http://127.0.0.1:8000/events", "http": "http://127.0.0.1/"}


def plan(kind: str = "ws", **options: Any) -> Plan:
    """A plan that differs from the simplest as said."""
    return Plan(**{"kind": kind, "url": URLS.get(kind, ""), **options})


def test_the_url_says_where_to_connect_and_what_to_ask_for() -> None:
    target = plan().target()
    assert ("127.0.0.1", 8000, "127.0.0.1:8000", "/ws/{number}?a=1") == (
        target.host,
        target.port,
        target.name,
        target.path,
    )
    assert (80, "127.0.0.1", "/") == (
        plan("http").target().port,
        plan("http").target().name,
        plan("http").target().path,
    )
    assert "/" == plan(url="http://127.0.0.1:1").target().path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "smtp", "url": "http://a"}, "choose one of ws, sse, http"),
        ({"connections": 0}, "connections=0: a whole number from 1"),
        ({"processes": -1}, "processes=-1"),
        ({"rate": 0}, "rate=0: a number from 0.01"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"patience": 0}, "patience=0"),
        ({"reconnect": -1}, "reconnect=-1"),
        ({"size": 0}, "size=0"),
        ({"send_every": -0.1}, "send_every=-0.1"),
        ({"kind": "sse", "url": URLS["sse"], "send_every": 1.0}, "use ws or http"),
        ({"fields": ("Authorization",)}, "write it as Name: value"),
        ({"fields": ("A: b\r\nC: d",)}, "write it as Name: value"),
        ({"url": "wss://127.0.0.1:8000/"}, "TLS is not spoken here"),
        ({"url": "127.0.0.1:8000"}, "write it as ws://127.0.0.1:8000/path"),
        ({"url": "ws://127.0.0.1:99999/"}, "out of range"),
        ({"url": "ws://127.0.0.1:0/"}, "write it as"),
        ({"url": "ws://127.0.0.1/a b"}, "without spaces"),
        ({"url": "ws://[::1/"}, "Invalid IPv6"),
        ({"kind": "sse", "url": URLS["ws"]}, "write it as http://127.0.0.1:8000/path"),
        ({"addresses": ("localhost",)}, "is not an address"),
        ({"addresses": ("127.0.0.1", "127.0.0.1"), "connections": PER_ADDRESS + 1, "processes": 9}, "for 1 addresses"),
        ({"connections": 10_000_000, "processes": 1}, "too many for 1 processes"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as refused:
        plan(**options)
    assert isinstance(refused.value, LongConnError)


def test_a_server_elsewhere_needs_addresses_for_many_connections() -> None:
    with pytest.raises(PlanError, match="give 2 with addresses"):
        plan(url="ws://192.0.2.1/", connections=PER_ADDRESS + 1).target()


def test_addresses_must_be_of_the_servers_kind() -> None:
    with pytest.raises(PlanError, match="those of one IP version"):
        plan(addresses=("::1",)).target()


def test_a_server_on_this_machine_is_asked_from_as_many_addresses_as_needed() -> None:
    shares = plan(connections=45_000).shares()
    assert ("127.0.0.1", "127.0.0.2", "127.0.0.3") == shares[0].addresses
    assert () == plan(connections=1_000).shares()[0].addresses


@given(st.integers(1, 100_000), st.integers(1, 20))
def test_shares_together_are_the_whole(connections: int, processes: int) -> None:
    if processes * per_process() < connections:
        processes = 0
    shares = plan(connections=connections, processes=processes, rate=1_000.0).shares()
    numbers = [number for share in shares for number in range(share.first, share.first + share.connections)]
    assert list(range(connections)) == numbers
    assert 1_000.0 == pytest.approx(sum(share.rate for share in shares))
    assert max(share.connections for share in shares) - min(share.connections for share in shares) <= 1
    assert all(share.connections <= per_process() for share in shares)


def test_a_process_holds_what_its_files_allow() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert 0 < per_process() < (hard if hard != resource.RLIM_INFINITY else 2**31)


def test_a_share_travels_as_json() -> None:
    share = plan(addresses=("127.0.0.5",), fields=("A: b",), subprotocols=("c",), send_every=0.5).shares()[0]
    assert share == Share.from_json(json.loads(json.dumps(share.as_json())))


def test_ranges_of_addresses() -> None:
    assert ("127.0.0.254", "127.0.0.255", "127.0.1.0", "::1") == addresses_in("127.0.0.254-127.0.1.0, ::1")


@pytest.mark.parametrize("text", ["", "127.0.0.2-127.0.0.1", "10.0.0.0-11.0.0.0", "::1-127.0.0.1", "1-2", "127.0.0.1,"])
def test_odd_ranges_are_refused(text: str) -> None:
    with pytest.raises(PlanError):
        addresses_in(text)


def test_the_command_line_says_all_of_a_plan() -> None:
    text = (
        "ws ws://127.0.0.1:8000/ --connections 5 --processes 2 --addresses 127.0.0.1-127.0.0.2 --rate 7 --seconds 8"
        " --send-every 0.5 --size 9 --check sequence --hello a --hello-again b --resume since --reconnect 0 --patience 3"
        " --subprotocol c --subprotocol d --json"
    )
    expected = Plan(
        kind="ws",
        url="ws://127.0.0.1:8000/",
        connections=5,
        processes=2,
        addresses=("127.0.0.1", "127.0.0.2"),
        rate=7.0,
        seconds=8.0,
        send_every=0.5,
        size=9,
        check=True,
        hello="a",
        hello_again="b",
        resume="since",
        reconnect=0.0,
        patience=3.0,
        fields=("Cookie: a=b",),
        subprotocols=("c", "d"),
    )
    assert (expected, True) == plan_of([*text.split(), "--field", "Cookie: a=b"])


def test_the_command_line_and_the_plan_have_the_same_defaults() -> None:
    assert (Plan(kind="http", url=URLS["http"]), False) == plan_of(["http", URLS["http"]])
