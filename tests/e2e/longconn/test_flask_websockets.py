"""Classes that attend to WebSockets: on the parking worker, and on gunicorn's own that do not park."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_server import PARKING, GunicornServer, gunicorn_server
from tests.support.websocket_client import HandshakeFailed, WebSocketClient, websocket


@pytest.fixture(scope="module", params=[PARKING, "gevent", "gthread"], ids=["parking", "gevent", "gthread"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornServer]:
    """Two workers of the application."""
    folder = tmp_path_factory.mktemp("classes") / "channels"
    threads = ("--threads", "24") if request.param == "gthread" else ()
    with gunicorn_server(
        *threads,
        app="tests.support.websocket_classes:app",
        worker=request.param,
        workers=2,
        environment={"LONGCONN_CHANNELS": str(folder)},
    ) as running:
        yield running
        assert running.log().count("Traceback") <= 1, running.log()  # the one that a test asks for


def entered(server: GunicornServer, room: str, user: str, since: str = "") -> WebSocketClient:
    """A client that has been told where the room stands."""
    client = websocket(server, f"/rooms/{room}?user={user}" + (f"&since={since}" if since else ""))
    client.place = json.loads(client.hear())["here"]  # type: ignore[attr-defined]
    return client


def said(client: WebSocketClient) -> str:
    """The next thing that is said in the room."""
    heard = json.loads(client.hear())
    client.place = heard["at"]  # type: ignore[attr-defined]
    return str(heard["said"])


def post(server: GunicornServer, path: str, body: bytes = b"") -> bytes:
    """What a POST is answered."""
    with server.client(10.0) as client:
        return client.ask(path, method="POST", body=body).body


@pytest.mark.together
def test_what_one_says_all_hear_whichever_worker_they_are_at(server: GunicornServer, name: str) -> None:
    clients = [entered(server, name, f"u{number}") for number in range(8)]
    for number, client in enumerate(clients):
        client.say(f"hello {number}")
        assert [f"u{number}: hello {number}"] * 8 == [said(each) for each in clients]
    workers = {post(server, f"/rooms/{name}?from={origin}", b"from a view") for origin in ("here", "thread") * 3}
    assert len(workers) in (1, 2)
    for client in clients:
        assert ["from a view"] * 6 == [said(client) for _ in range(6)]
        client.socket.close()


@pytest.mark.together
def test_messages_of_one_client_are_handled_in_order(server: GunicornServer, name: str) -> None:
    with entered(server, name, "ann") as client:
        client.say(*(f"{number}" for number in range(300)))
        assert [f"ann: {number}" for number in range(300)] == [said(client) for _ in range(300)]


@pytest.mark.together
def test_a_handler_that_blocks_holds_up_its_own_client_only(server: GunicornServer, name: str) -> None:
    with entered(server, name, "slow") as slow, entered(server, name, "quick") as quick:
        slow.say("!sleep", "!who")
        quick.say("meanwhile")
        assert "quick: meanwhile" == said(quick)
        heard = [slow.hear() for _ in range(3)]
        own = ["slept", json.dumps(["slow", False, [name]], separators=(",", ":"))]
        assert own == [each for each in heard if "meanwhile" not in each]


@pytest.mark.together
def test_a_client_that_comes_back_hears_what_it_missed(server: GunicornServer, name: str) -> None:
    with entered(server, name, "ann") as client:
        client.say("first")
        assert "ann: first" == said(client)
        place = client.place  # type: ignore[attr-defined]
    for number in range(3):
        post(server, f"/rooms/{name}", b"%d" % number)
    with websocket(server, f"/rooms/{name}?user=ann&since={place}") as client:
        assert ["0", "1", "2"] == [said(client) for _ in range(3)]
        assert json.loads(client.hear())["complete"]
        client.say("again")
        assert "ann: again" == said(client)


@pytest.mark.together
def test_bytes_and_fragments_arrive_as_they_were_sent(server: GunicornServer, name: str) -> None:
    with entered(server, name, "ann") as client:
        client.say(b"\x00\xff" * 200_000)
        assert b"\x00\xff" * 200_000 == client.hear()
        client.send(client.frame(2, b"in ", fin=False) + client.frame(9, b"!") + client.frame(0, b"pieces"))
        assert [("pong", b"!"), b"in pieces"] == [client.hear(), client.hear()]


@pytest.mark.together
def test_who_may_not_is_told_before_it_is_a_websocket(server: GunicornServer) -> None:
    for target, status in (("/private", 401), ("/private?token=bad", 403), ("/none", 404)):
        with pytest.raises(HandshakeFailed) as failed:
            websocket(server, target)
        assert status == failed.value.reply.status
    with pytest.raises(HandshakeFailed) as failed:
        websocket(server, "/private?token=good", "Origin: http://elsewhere.example")
    assert 403 == failed.value.reply.status
    assert 426 == server.get("/private")[0]


@pytest.mark.together
def test_an_authorization_that_ends_ends_the_connection(server: GunicornServer) -> None:
    with websocket(server, "/private?token=good&seconds=0.5") as client:
        assert "hello ann" == client.hear()
        assert ("close", 1008) == client.hear()[:2]


@pytest.mark.together
def test_an_error_closes_its_own_connection_with_1011(server: GunicornServer, name: str) -> None:
    with entered(server, name, "ann") as ann, entered(server, name, "bob") as bob:
        ann.say("!fail")
        assert ("close", 1011) == ann.hear()[:2]
        bob.say("still here")
        assert "bob: still here" == said(bob)


@pytest.mark.together
def test_a_user_is_sent_away_from_any_worker(server: GunicornServer, name: str) -> None:
    clients = [entered(server, name, f"{name}-x") for _ in range(4)]
    eventually(lambda: 4 == json.loads(server.get("/connections")[2]).count(f"{name}-x"))
    assert b"4" == post(server, f"/kick/{name}-x")
    for client in clients:
        assert ("close", 4003, "go") == client.hear()
        client.say_goodbye(4003)
        assert client.hear() is None
        client.socket.close()
    eventually(lambda: [f"{name}-x", 4003, "go"] in json.loads(server.get("/ends")[2]))
