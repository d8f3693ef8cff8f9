"""The admin endpoint: one answer for all workers, and none at all for those who have no business there."""

from __future__ import annotations

import logging
import operator
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from flask import Flask, Response
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from resilience import Decision, Limit, MemoryStorage, RateLimiter, StorageUnavailable, create_admin_blueprint
from resilience.adapters.admin.circuits import merge_circuit
from resilience.adapters.admin.limiters import merge_limiter, merge_state, merge_storage
from resilience.adapters.peers import Answers, Message, Worker
from resilience.core.limiter import Charge, Refund
from resilience.events import PROCESS_EVENTS
from resilience.registry import PROCESS_REGISTRY
from resilience.storage.standin import StandInStorage
from resilience.testing import FakeClock, RecordingListener
from tests.support.operating import TOKEN, Operated

ONE, TWO, THREE = (Worker("web-1", pid) for pid in (1, 2, 3))


@pytest.fixture
def call() -> Iterator[Operated]:
    PROCESS_REGISTRY.clear()
    PROCESS_EVENTS.clear()
    yield Operated()
    PROCESS_REGISTRY.clear()
    PROCESS_EVENTS.clear()


# -- circuits ----------------------------------------------------------------------------------------------------------


def test_circuits_are_listed_with_state_counts_and_settings(call: Operated) -> None:
    call.circuit.call(lambda: None)
    answer = call("GET", "/admin/circuits")
    (circuit,) = answer.get_json()["circuits"]
    assert "no-store" == answer.headers["Cache-Control"]
    assert {"succeeded": 1, "failed": 0, "ignored": 0, "not_permitted": 0, "slow": 0} == circuit["calls"]
    assert {"fail_max": 2, "reset_timeout": 10, "success_threshold": 1, "half_open_max_calls": 1}.items() <= circuit[
        "settings"
    ].items()
    told = ("name", "state", "states", "since", "retry_after", "expires_in", "failures", "failure_rate", "sharing")
    assert (
        "pay/ments", "closed", {"closed": 1}, None, 0.0, None, 0, -1.0,
        {"uri": None, "reach": "process", "alone": 0, "votes": [], "quorum": 2},
    ) == operator.itemgetter(*told)(circuit)  # fmt: skip
    assert "by_worker" not in circuit


def test_the_workers_are_named_in_every_answer(call: Operated) -> None:
    itself = call.application.worker.describe()
    assert {"answered": [itself], "unreached": [], "problem": ""} == call("GET", "/admin/circuits").get_json()[
        "workers"
    ]


def test_one_circuit_is_shown_worker_by_worker(call: Operated, monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in ("adapters.answering", "decorators.snapshot"):  # they read the time of day one after the other
        monkeypatch.setattr(f"resilience.{reader}.epoch_seconds", lambda: 1_800_000_000.0)
    call.circuit.open()
    call.clock.advance(4)
    circuit = call("GET", "/admin/circuits/pay/ments").get_json()["circuit"]
    (own,) = circuit["by_worker"]
    assert ("open", 6.0, 6.0, 4.0) == (circuit["state"], circuit["retry_after"], own["retry_after"], own["since"])
    assert call.application.worker.describe() == own["worker"]
    (listed,) = call("GET", "/admin/circuits?detail=workers").get_json()["circuits"]
    assert circuit == listed


@pytest.mark.parametrize(
    ("action", "order", "state", "expires_in"),
    [
        ("open", None, "forced-open", None),
        ("open", {"ttl": 60, "reason": "moving"}, "forced-open", 60.0),
        ("close", {}, "closed", None),
        ("close", {"ttl": 0.5}, "forced-closed", 0.5),
        ("half-open", {"reason": "look"}, "half-open", None),
        ("disable", {"ttl": 30}, "disabled", 30.0),
        ("metrics-only", {}, "metrics-only", None),
        ("reset", {"reason": "new day"}, "closed", None),
    ],
)
def test_every_order_moves_the_circuit(
    call: Operated, action: str, order: dict[str, Any] | None, state: str, expires_in: float | None
) -> None:
    answer = call("POST", f"/admin/circuits/pay/ments/{action}", order)
    circuit = answer.get_json()["circuit"]
    assert (200, state, state, expires_in) == (
        answer.status_code, circuit["state"], call.circuit.snapshot().state, circuit["expires_in"]
    )  # fmt: skip
    assert ((order or {}).get("reason", ""), "token (127.0.0.1)") == (circuit["reason"], circuit["author"])
    assert [call.application.worker.describe()] == answer.get_json()["executed"]


def test_what_was_ordered_for_a_time_is_over_after_it(call: Operated) -> None:
    call("POST", "/admin/circuits/pay/ments/close", {"ttl": 60})
    call.clock.advance(60)
    assert "closed" == call("GET", "/admin/circuits/pay/ments").get_json()["circuit"]["state"]


@pytest.mark.parametrize(
    ("action", "body", "said"),
    [
        ("open", {"ttl": 0}, "ttl: a number of seconds above 0, at most 2,592,000 (30 days)"),
        ("open", {"ttl": -1}, "above 0"),
        ("open", {"ttl": True}, "above 0"),
        ("open", {"ttl": "60"}, "above 0"),
        ("open", {"ttl": 2_592_001}, "above 0"),
        ("open", {"ttl": 10**400}, "above 0"),
        ("half-open", {"ttl": 60}, "ttl: not taken here, only reason"),
        ("reset", {"ttl": 60}, "ttl: not taken here, only reason"),
        ("open", {"state": "closed"}, "state: not taken here, only reason, ttl"),
        ("open", {"reason": "x" * 501}, "reason: a text of at most 500 characters"),
        ("open", {"reason": "bell\a"}, "none of them a control character"),
        ("open", {"reason": None}, "reason: a text"),
        ("open", ["reason"], "the body is a JSON object"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_what_to_do(
    call: Operated, action: str, body: Any, said: str
) -> None:
    answer = call("POST", f"/admin/circuits/pay/ments/{action}", body)
    assert (400, "closed") == (answer.status_code, call.circuit.current_state)
    assert "application/problem+json" == answer.content_type
    assert said in answer.get_json()["detail"]


def test_an_order_that_is_no_json_is_refused(call: Operated) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    path = "/admin/circuits/pay/ments/open"
    for body, media_type, status in (("{", "application/json", 400), ("reason=x", "text/plain", 415)):
        assert status == call.client.post(path, data=body, content_type=media_type, headers=headers).status_code
    assert 413 == call("POST", path, {"reason": "x" * 20_000}).status_code
    assert "closed" == call.circuit.current_state


def test_reading_never_changes_anything(call: Operated) -> None:
    for method in ("GET", "HEAD"):
        assert 405 == call(method, "/admin/circuits/pay/ments/open").status_code
    assert 405 == call("PUT", "/admin/circuits/pay/ments/open").status_code
    assert 405 == call("GET", "/admin/logout").status_code
    assert "closed" == call.circuit.current_state
    assert [] == call("GET", "/admin/audit").get_json()["entries"]


def test_an_order_that_is_read_says_how_it_is_given(call: Operated) -> None:
    answer = call("GET", "/admin/circuits/pay/ments/open")
    assert (405, "POST") == (answer.status_code, answer.headers["Allow"])
    assert (
        "no circuit is named 'pay/ments/open'; what moves one is POST .../pay/ments/open" in answer.get_json()["detail"]
    )
    call.application.registry.add_circuit(type(call.circuit)(name="all/open"))
    assert "all/open" == call("GET", "/admin/circuits/all/open").get_json()["circuit"]["name"]


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        (
            "POST",
            "circuits/pay/ments/opne",
            404,
            "there is no order 'opne' for circuits: there is open, close, half-open",
        ),
        ("POST", "limiters/api/rest", 404, "there is no order 'rest' for limiters: there is reset, override, restore"),
        ("PUT", "circuits/pay/ments/open", 405, "method is not allowed"),
        ("GET", "nonsense", 404, "not found"),
    ],
)
def test_what_leads_nowhere_is_told_as_a_problem_to_whoever_may_know(
    call: Operated, method: str, path: str, status: int, said: str
) -> None:
    answer = call(method, f"/admin/{path}")
    assert (status, "application/problem+json") == (answer.status_code, answer.content_type)
    assert said in answer.get_json()["detail"]
    assert "no-store" == answer.headers["Cache-Control"]
    answer = call(method, f"/admin/{path}", token=None)
    assert (401, "application/problem+json") == (answer.status_code, answer.content_type)


def test_an_address_that_leads_on_leads_on(call: Operated) -> None:
    answer = call("GET", "/admin//circuits")
    assert (308, "http://localhost/admin/circuits") == (
        answer.status_code,
        answer.headers["Location"].replace(":8001", ""),
    )


def test_a_body_that_is_no_json_says_where(call: Operated) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for debug in (False, True):
        call.app.debug = debug
        answer = call.client.post(
            "/admin/circuits/pay/ments/open", data="{'", content_type="application/json", headers=headers
        )
        assert "the body is no JSON: Expecting property name" in answer.get_json()["detail"]


def test_a_wrong_token_is_told_from_none(call: Operated) -> None:
    said = [call("GET", "/admin/circuits", token=token).get_json()["detail"] for token in (None, "wrong")]
    assert said[0].startswith("the admin endpoint needs 'Authorization: Bearer <admin token>'")
    assert "this is not the admin token" == said[1]


def test_the_endpoint_is_refused_by_an_application_without_the_library() -> None:
    with pytest.raises(RuntimeError, match=r"call Resilience\(app\) before app.register_blueprint"):
        Flask("bare").register_blueprint(create_admin_blueprint())


def test_an_endpoint_without_a_token_says_once_that_it_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    call = Operated(admin_token=None)
    assert [404, 404] == [call("GET", "/admin/circuits").status_code for _ in range(2)]
    assert ["there is no admin endpoint without a token: set RESILIENCE_ADMIN_TOKEN"] == caplog.messages
    caplog.clear()
    Operated()
    assert [] == caplog.messages


def test_an_unknown_circuit_is_not_found(call: Operated) -> None:
    for method, path in (("GET", "nonsense"), ("POST", "nonsense/open"), ("GET", "nonsense/events")):
        answer = call(method, f"/admin/circuits/{path}")
        assert 404 == answer.status_code
        assert "GET the list for the names" in answer.get_json()["detail"]


def test_a_circuit_tells_what_happened_to_it(call: Operated) -> None:
    call.circuit.open()
    call.circuit.close()
    events = call("GET", "/admin/circuits/pay/ments/events").get_json()["events"]
    assert [("closed", "open"), ("open", "closed")] == [(event["old"], event["new"]) for event in events]


def test_a_circuit_whose_name_ends_like_the_list_of_its_events_is_shown(call: Operated) -> None:
    call.application.registry.add_circuit(type(call.circuit)(name="all/events"))
    assert "all/events" == call("GET", "/admin/circuits/all/events").get_json()["circuit"]["name"]


def test_a_listener_that_raises_does_not_fail_the_operator(call: Operated) -> None:
    class Raising(RecordingListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            raise RuntimeError("broken metrics")

    call.circuit.add_listener(Raising())
    answer = call("POST", "/admin/circuits/pay/ments/open")
    assert (200, "forced-open") == (answer.status_code, answer.get_json()["circuit"]["state"])


def test_an_order_that_nobody_could_carry_out_is_a_503_and_in_the_audit_log(call: Operated) -> None:
    def unavailable(**_: Any) -> None:
        raise StorageUnavailable("gone")

    call.circuit.disable = unavailable  # type: ignore[method-assign]
    answer = call("POST", "/admin/circuits/pay/ments/disable", {})
    assert 503 == answer.status_code
    assert "no worker could do it: StorageUnavailable: gone" == answer.get_json()["detail"]
    (entry,) = call("GET", "/admin/audit").get_json()["entries"]
    assert ("failed", "StorageUnavailable: gone") == (entry["outcome"], entry["detail"])


def report(state: str, **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("succeeded", "failed", "ignored", "not_permitted", "slow", "failures", "successes"), 2)
    settings = {"failure_rate": 0.5, "slow_call_rate": None, "minimum_calls": 10, "quorum": 2}
    window = {"calls": 6, "failed": 3, "slow": 1, "slow_failed": 0}
    durations = {"succeeded": {"sum": 1.0, "max": 0.5}}
    reported = {"state": state, "since": 5.0, "retry_after": 0.0, "window": window, "generation": 1, "reach": "process"}
    return {"name": "x", **counts, "settings": settings, "durations": durations, **reported, **more}


def test_workers_that_disagree_are_shown_as_the_most_restrictive() -> None:
    merged = merge_circuit(
        "x",
        [
            (ONE, report("closed", since=1.0)),
            (TWO, report("open", retry_after=5.0, since=7.0, cause="too many")),
            (THREE, report("half-open", retry_after=9.0)),
        ],
    )
    assert ("open", {"closed": 1, "open": 1, "half-open": 1}, 5.0, 7.0, "too many", 6) == (
        merged["state"], merged["states"], merged["retry_after"], merged["since"], merged["cause"],
        merged["calls"]["failed"],
    )  # fmt: skip


def test_windows_are_added_up_before_a_rate_is_made_of_them() -> None:
    merged = merge_circuit("x", [(ONE, report("closed")), (TWO, report("closed"))])
    assert {"calls": 12, "failed": 6, "slow": 2, "slow_failed": 0} == merged["window"]
    assert (50.0, -1.0) == (merged["failure_rate"], merged["slow_call_rate"])
    assert -1.0 == merge_circuit("x", [(ONE, report("closed"))])["failure_rate"], "below minimum_calls"


def test_times_of_calls_are_added_up_and_the_longest_is_the_longest_of_all() -> None:
    longer = report("closed", durations={"succeeded": {"sum": 2.0, "max": 0.75}})
    merged = merge_circuit("x", [(ONE, report("closed")), (TWO, longer)])
    assert {"succeeded": {"sum": 3.0, "max": 0.75}} == merged["durations"]


def test_who_is_alone_and_who_votes_is_told() -> None:
    shared = {"uri": "redis://limits", "reach": "hosts", "votes": ["web-2"]}
    merged = merge_circuit("x", [(ONE, report("closed", **shared)), (TWO, report("closed", alone=True, **shared))])
    assert {
        "uri": "redis://limits",
        "reach": "hosts",
        "alone": 1,
        "votes": ["web-2"],
        "quorum": 2,
    } == merged["sharing"]


# -- limiters ----------------------------------------------------------------------------------------------------------


def test_limiters_are_listed_with_what_they_decided(call: Operated) -> None:
    for _ in range(3):
        call.limiter.try_acquire()
    (limiter,) = call("GET", "/admin/limiters").get_json()["limiters"]
    assert {
        "name": "api",
        "limits": ["2 per 60 s"],
        "storage": "memory://",
        "allowed": 2,
        "denied": 1,
        "shadow_denied": 0,
        "waited": 0,
        "exempted": 0,
        "override": None,
        "top": [{"key": "k", "refused": 1, "error": 0}],
    } == limiter


def test_limits_of_the_application_are_listed_once_however_many_routes_there_are(call: Operated) -> None:
    call = Operated(application_limits="100/minute", default_limits="2/minute")
    for path in ("/nothing", "/admin/circuits", "/admin/circuits", "/admin/circuits"):
        call("GET", path)
    listed = {each["name"]: each for each in call("GET", "/admin/limiters").get_json()["limiters"]}
    assert {"api", "demo:application", "demo:default"} == listed.keys()
    assert (4, 3, 1) == (
        listed["demo:application"]["allowed"], listed["demo:default"]["allowed"], listed["demo:default"]["denied"]
    )  # fmt: skip


def test_the_storage_is_shown_with_who_decides() -> None:
    class Going(MemoryStorage):
        is_gone = False

        def take(self, charges: Sequence[Charge]) -> Decision:
            if self.is_gone:
                raise StorageUnavailable("gone")
            return super().take(charges)

    going = Going()
    storage = StandInStorage(going, clock=FakeClock(), probing=False)
    call = Operated(storage=storage)
    call("POST", "/admin/login", {"token": TOKEN}, token=None)  # a token would be counted in the storage
    assert ("primary", {"primary": 1}) == operator.itemgetter("mode", "modes")(
        call("GET", "/admin/limiters", token=None).get_json()["storage"]
    )
    going.is_gone = True
    for _ in range(3):
        storage.take([Charge("scope", "subject", Limit(1, 60), 1)])
    assert {
        "uri": "memory://",
        "mode": "local",
        "modes": {"local": 1},
        "since": 0.0,
        "failures": 1,
        "changes": 1,
        "decided_locally": 3,
    } == call("GET", "/admin/limiters", token=None).get_json()["storage"]


def test_a_storage_without_a_stand_in_always_decides_itself(call: Operated) -> None:
    storage = call("GET", "/admin/limiters").get_json()["storage"]
    assert ("memory://", "primary", 0) == (storage["uri"], storage["mode"], storage["failures"])


def test_workers_that_disagree_about_the_storage_are_counted_by_mode() -> None:
    def answer(mode: str, since: float) -> dict[str, Any]:
        counts = {"failures": 1, "changes": 2, "decided_locally": 3}
        return {"storage": {"uri": "redis://limits", "mode": mode, "since": since, **counts}}

    answers = Answers({ONE: answer("primary", 9.0), TWO: answer("local", 4.0), THREE: answer("local", 2.0)}, ())
    merged = merge_storage(answers)
    assert ("local", {"primary": 1, "local": 2}, 2.0, 9) == (
        merged["mode"], merged["modes"], merged["since"], merged["decided_locally"]
    )  # fmt: skip


def test_a_storage_of_states_that_one_worker_cannot_reach_is_out_of_reach() -> None:
    def answer(*, reachable: bool) -> dict[str, Any]:
        return {"state": {"uri": "redis://state", "spans_hosts": True, "reachable": reachable}}

    answers = Answers({ONE: answer(reachable=True), TWO: answer(reachable=False)}, ())
    assert {"uri": "redis://state", "spans_hosts": True, "reachable": False} == merge_state(answers)


def test_keys_that_are_refused_most_are_added_up_over_all_workers() -> None:
    counts = dict.fromkeys(("allowed", "denied", "shadow_denied", "waited", "exempted"), 1)
    first = {**counts, "limits": [], "storage": "", "top": [["a", 5, 0], ["b", 4, 1]]}
    second = {**counts, "limits": [], "storage": "", "top": [["b", 3, 1]]}
    assert [{"key": "b", "refused": 7, "error": 2}, {"key": "a", "refused": 5, "error": 0}] == merge_limiter(
        "x", [(ONE, first), (TWO, second)]
    )["top"]


def test_the_bucket_of_one_caller_can_be_filled(call: Operated, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("k", "other"):
        while call.limiter.try_acquire(key).allowed:
            pass
    with caplog.at_level(logging.WARNING, "resilience.audit"):
        answer = call("POST", "/admin/limiters/api/reset?key=other")
    assert (200, "other", "api") == (answer.status_code, answer.get_json()["key"], answer.get_json()["limiter"]["name"])
    assert [False, True] == [call.limiter.try_acquire(key).allowed for key in ("k", "other")]
    assert "limiter 'api': reset by token (127.0.0.1): done, key 'other'" in caplog.text
    (event,) = call("GET", "/admin/events?type=RESET").get_json()["events"]
    assert ("limiter", "api", "other", "token (127.0.0.1)") == (
        event["kind"], event["policy"], event["key"], event["author"]
    )  # fmt: skip


def test_the_key_may_stand_in_the_body_with_a_reason(call: Operated) -> None:
    while call.limiter.try_acquire().allowed:
        pass
    call("POST", "/admin/limiters/api/reset", {"key": "k", "reason": "a partner"})
    assert call.limiter.try_acquire().allowed
    assert "a partner" == call("GET", "/admin/audit").get_json()["entries"][0]["reason"]


def test_a_caller_s_default_limit_is_filled_for_every_route() -> None:
    call = Operated(default_limits="2/hour")
    paths = ("/admin/circuits", "/admin/circuits/pay/ments")
    assert [200, 200, 429] * 2 == [call("GET", path).status_code for path in paths for _ in range(3)]
    assert 200 == call("POST", "/admin/limiters/demo:default/reset?key=127.0.0.1").status_code
    assert [200, 200] == [call("GET", path).status_code for path in paths]


def test_a_reset_needs_a_limiter_and_a_key(call: Operated) -> None:
    assert 404 == call("POST", "/admin/limiters/nonsense/reset?key=k").status_code
    assert 400 == call("POST", "/admin/limiters/api/reset").status_code
    assert 400 == call("POST", f"/admin/limiters/api/reset?key={'k' * 1_025}").status_code
    assert 400 == call("POST", "/admin/limiters/api/reset", {"key": 7}).status_code
    assert 405 == call("GET", "/admin/limiters/api/reset?key=k").status_code


def test_a_reset_that_no_storage_has_heard_of_is_not_said_to_be_done(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryStorage):
        def give_back(self, refunds: Sequence[Refund]) -> None:
            raise StorageUnavailable("gone")

    call = Operated()
    call.application.registry.add_limiter(RateLimiter("2/minute", name="broken", storage=Broken()))
    answer = call("POST", "/admin/limiters/broken/reset?key=k")
    assert (503, "no worker could do it: StorageUnavailable: gone") == (
        answer.status_code, answer.get_json()["detail"]
    )  # fmt: skip
    assert "an order was not carried out: reset" in caplog.text


def test_other_limits_hold_for_a_time_and_then_the_own_ones_again(call: Operated) -> None:
    answer = call("POST", "/admin/limiters/api/override", {"limits": "1/hour", "ttl": 600, "reason": "attack"})
    override = answer.get_json()["limiter"]["override"]
    assert (200, ["1 per 3600 s"]) == (answer.status_code, answer.get_json()["limiter"]["limits"])
    assert ("1/hour", "attack", "token (127.0.0.1)", ["2 per 60 s"]) == (
        override["limits"], override["reason"], override["author"], override["replaces"]
    )  # fmt: skip
    assert [True, False] == [call.limiter.try_acquire().allowed for _ in range(2)]
    restored = call("POST", "/admin/limiters/api/restore", {"reason": "over"}).get_json()["limiter"]
    assert (["2 per 60 s"], None) == (restored["limits"], restored["override"])
    actions = [(entry["action"], entry["ttl"]) for entry in call("GET", "/admin/audit").get_json()["entries"]]
    assert [("restore", None), ("override", 600)] == actions


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"limits": "1/hour"}, "ttl is missing"),
        ({"ttl": 60}, 'limits: a text such as "5/second; 100/hour"'),
        ({"limits": " ", "ttl": 60}, "limits: a text"),
        ({"limits": "many", "ttl": 60}, "many"),
        ({"limits": "1/hour", "ttl": 60, "burst": 0}, "burst: a whole number from 1"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(call: Operated, body: dict[str, Any], said: str) -> None:
    answer = call("POST", "/admin/limiters/api/override", body)
    assert 400 == answer.status_code
    assert said in answer.get_json()["detail"]
    assert call("GET", "/admin/limiters").get_json()["limiters"][0]["override"] is None


def test_an_order_for_a_limiter_of_another_worker_is_for_that_one_to_carry_out(call: Operated) -> None:
    elsewhere = Worker("web-1", 4711)
    told = {**call.limiter.snapshot(default_storage=call.application.storage)._asdict(), "name": "late"}
    asked: list[Message] = []

    class Siblings:
        """Another worker, which alone has it."""

        def ask(self, message: Message) -> Answers:
            asked.append(message)
            return Answers(
                {elsewhere: {"limiters": [told], "executed": message.get("executor") == elsewhere.describe()}}, ()
            )

    call.application.peers = Siblings()  # type: ignore[assignment]
    for action, body in (("override", {"limits": "1/second", "ttl": 9}), ("restore", {}), ("reset", {"key": "k"})):
        answer = call("POST", f"/admin/limiters/late/{action}", body)
        assert (200, "late") == (answer.status_code, answer.get_json()["limiter"]["name"])
        assert [elsewhere.describe()] == answer.get_json()["executed"]
    assert [None, "override", None, "restore", None, "reset"] == [message.get("do") for message in asked]


def test_only_known_limiters_can_be_overridden(call: Operated) -> None:
    assert 404 == call("POST", "/admin/limiters/nonsense/override", {"limits": "1/hour", "ttl": 60}).status_code
    assert 404 == call("POST", "/admin/limiters/nonsense/restore").status_code


# -- who may -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "ümlaut"])
@pytest.mark.parametrize("path", ["circuits", "limiters", "policies", "events", "audit", "session"])
def test_without_the_token_nothing_is_told(call: Operated, token: str | None, path: str) -> None:
    answer = call("GET", f"/admin/{path}", token=token)
    assert (401, "Bearer realm=admin") == (answer.status_code, answer.headers["WWW-Authenticate"])


def test_on_another_listener_it_does_not_exist() -> None:
    call = Operated(admin_port=8001)
    assert 200 == call("GET", "/admin/circuits").status_code
    for path in ("/admin/circuits", "/admin", "/admin/", "/admin/nothing"):
        elsewhere, nothing = call("GET", path, port=8000), call("GET", "/nothing", port=8000)
        assert (404, nothing.data, nothing.headers) == (elsewhere.status_code, elsewhere.data, elsewhere.headers)
    assert 404 == call("POST", "/admin/login", {"token": TOKEN}, port=8000).status_code


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_configured_token_it_does_not_exist(token: str | None) -> None:
    call = Operated(admin_token=token)
    assert 404 == call("POST", "/admin/circuits").status_code
    assert 404 == call("DELETE", "/admin/limiters").status_code
    assert 404 == call("GET", "/admin/circuits").status_code
    assert 404 == call("GET", "/admin/").status_code
    assert 404 == call("POST", "/admin/login", {"token": ""}).status_code
    assert 404 == call("POST", "/admin/circuits/pay/ments/open", token="").status_code


def test_a_client_or_a_proxy_cannot_claim_the_admin_port() -> None:
    call = Operated(admin_port=8001)
    app = call.app
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_port=1)  # type: ignore[method-assign]  # as its documents say
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Forwarded-Host": "example.org:8001", "X-Forwarded-Port": "8001"}
    answer = call.client.get("/admin/circuits", headers=headers, environ_overrides={"SERVER_PORT": "8000"})
    assert 404 == answer.status_code
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as public:
        for listening in (unix, public):
            environ = {"gunicorn.socket": listening, "SERVER_PORT": "8001"}
            assert 404 == call.client.get("/admin/circuits", headers=headers, environ_overrides=environ).status_code


def test_an_application_that_has_its_own_words_for_errors_says_them_here_too(call: Operated) -> None:
    def own(error: HTTPException) -> Response:
        return Response(f"mine: {error.description}", error.code)

    call.app.register_error_handler(HTTPException, own)
    assert b"mine: no circuit is named 'x'" in call("GET", "/admin/circuits/x").data
