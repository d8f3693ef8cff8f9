"""`/admin/connections`."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.exceptions import Unauthorized

from longconn.channels.errors import ChannelsUnavailable
from longconn.roster import Connections, Counts, Kicked, Roster
from service.routes.connections import create_connections_blueprint
from tests.support.routes import application


class Register(Roster):
    """Knows two connections and keeps what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.failure: Exception | None = None

    def connections(self, **filters: Any) -> Connections:
        if self.failure is not None:
            raise self.failure
        self.asked.append(filters)
        found = Connections([{"id": "w1-5", "user": "user-7"}])
        found.total, found.silent = 2, (99,)
        return found

    def counts(self, **_: Any) -> Counts:
        return Counts(connections=2, workers={98: 2})

    def kick(self, *, code: int = 0, reason: str = "", **choice: Any) -> Kicked:
        self.asked.append((choice, code, reason))
        return Kicked(2, [99])


@pytest.fixture
def register() -> Register:
    return Register()


@pytest.fixture
def recorded() -> list[Any]:
    return []


@pytest.fixture
def client(register: Register, recorded: list[Any]) -> FlaskClient:
    def record(action: str, target: str, *, detail: str) -> None:
        recorded.append((action, target, detail))

    return application(create_connections_blueprint(register, authorize=lambda: None, record=record)).test_client()


def test_the_list_says_how_many_there_are_and_who_did_not_answer(client: FlaskClient, register: Register) -> None:
    answer = client.get("/admin/connections?user=user-7&kind=websocket&worker=7&limit=5&other=1").get_json()
    assert {"connections": [{"id": "w1-5", "user": "user-7"}], "total": 2, "unreached": [99]} == answer
    assert [{"user": "user-7", "kind": "websocket", "worker": 7, "most": 5}] == register.asked


def test_the_counts_are_those_of_the_roster(client: FlaskClient) -> None:
    response = client.get("/admin/connections/counts")
    assert {"connections": 2, "workers": {"98": 2}, "unreached": []} == response.get_json()
    assert "no-store" == response.headers["Cache-Control"]


def test_a_kick_closes_with_a_code_and_stands_in_the_audit_log(
    client: FlaskClient, register: Register, recorded: list[Any]
) -> None:
    body = {"user": "user-7", "worker": 98, "code": 4001, "reason": "go away"}
    response = client.post("/admin/connections/kick", json=body)
    assert {"kicked": 2, "code": 4001, "reason": "go away", "unreached": [99]} == response.get_json()
    assert [({"user": "user-7", "worker": 98}, 4001, "go away")] == register.asked
    target, detail = "connections user user-7, worker 98", "2 closed with 4001 go away; no answer from 99"
    assert [("kick", target, detail)] == recorded


def test_without_a_code_it_is_a_matter_of_policy(client: FlaskClient, register: Register) -> None:
    client.post("/admin/connections/kick", json={"id": "w1-5"})
    assert [({"id": "w1-5"}, 1008, "")] == register.asked


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": 1008},
        {"user": ""},
        {"user": 7},
        {"worker": "7"},
        {"user": "a", "code": 1005},
        {"user": "a", "code": 1006},
        {"user": "a", "code": "1008"},
        {"user": "a", "code": True},
        {"user": "a", "reason": "é" * 62},
        {"all": "yes"},
    ],
)
def test_a_kick_that_does_not_say_whom_or_how_kicks_nobody(
    client: FlaskClient, register: Register, body: dict[str, object]
) -> None:
    assert (400, []) == (client.post("/admin/connections/kick", json=body).status_code, register.asked)


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "limit=", "worker=", "worker=-1"])
def test_a_number_is_one_in_its_range(client: FlaskClient, query: str) -> None:
    assert 400 == client.get(f"/admin/connections?{query}").status_code


def test_while_no_worker_can_be_asked_the_answer_says_so(client: FlaskClient, register: Register) -> None:
    register.failure = ChannelsUnavailable("no room")
    assert 20010 == client.get("/admin/connections").get_json()["code"]


def test_whoever_is_not_let_in_learns_and_does_nothing(register: Register) -> None:
    def refuse() -> None:
        raise Unauthorized

    blueprint = create_connections_blueprint(register, authorize=refuse, record=lambda *_, **__: None)
    client = application(blueprint).test_client()
    answers = [
        client.get("/admin/connections"),
        client.get("/admin/connections/counts"),
        client.post("/admin/connections/kick", json={"user": "a"}),
    ]
    assert ([401] * 3, []) == ([answer.status_code for answer in answers], register.asked)
