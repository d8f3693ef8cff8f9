"""An application whose connections can be handed over to a `Talker`, an endpoint that does what its client asks for.

/upgrade?name=&kind=   hands the connection over, under this name. Each ?run= is a command that runs before the application
                       returns; ?after= says what the application does then: "raise", "sleep 0.5", "close"
/do?name=&run=         runs commands on a connection of another request, in this request's greenlet; they must not block
/post?name=&messages=  posts "0", "1", ... up to so many; ?from=thread: by `post_from_thread` of a native thread
/alive?name=           JSON: whether the connection has not ended, and its descriptor
/refused?how=          hands over at the wrong moment and answers with the error: "late" after the head was written, "unread"
                       with an unread body, "twice" (which is a hand-over, and tells the client what the second one raised)
/figures               JSON: this worker's row of the scoreboard
/metrics               what Prometheus would get
/log?lines=&size=      writes lines to gunicorn's error log
/block?seconds=        stands in the way of the loop
/pid                   the worker's process id

A client sends commands, one a line:

say <text>             send it back
wake <seconds>|never   set the deadline
large <bytes>          send that much of the pattern
sleep <seconds>        block
raise <name>           raise an error of this name
close <reason>         end the connection
on <method> <command>  run the command whenever this method is called, after what it does of itself

The endpoint tells its client "deadline", "message <message>" and "draining <seconds>", a line each. All that happens to it
is a line of the file that the environment names as EVENTS: "<name> <what>".
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import gevent
from gevent import monkey

from longconn import HANDLED, Endpoint, UpgradedConnection, UpgradeError, scoreboard
from longconn.metrics import CONTENT_TYPE, render
from longconn.worker import BOARD
from tests.support.longconn_app import pattern

__all__ = ["SWITCHED", "application", "hold_the_loop_up"]

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: talk\r\n\r\n"


class Unusual(BaseException):
    """Nothing that anybody would think of catching."""


ERRORS: dict[str, type[BaseException]] = {
    each.__name__: each for each in (RuntimeError, OSError, SystemExit, gevent.GreenletExit, gevent.Timeout, Unusual)
}


class Talk:
    """What is kept of one connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.received = b""
        self.queue = bytearray()
        self.then: dict[str, list[str]] = {}
        self.inside = False
        self.left = False


class Talker(Endpoint):
    """Does what its clients ask for, see the top of this module."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def readable(self, connection: UpgradedConnection) -> None:
        """Carry out what the client asks for."""
        with _Entered(connection, "readable"):
            talk = connection.state_of_endpoint
            while data := connection.receive():
                talk.received += data
            *lines, talk.received = talk.received.split(b"\n")
            for line in lines:
                run(connection, line.decode())
            if data == b"":
                self._left(connection, talk)
            self._then(connection, "readable")

    def _left(self, connection: UpgradedConnection, talk: Talk) -> None:
        if not talk.left:  # a half close may be told of more than once
            talk.left = True
            note(talk.name, "left")
            self._then(connection, "left")
        if "left" not in talk.then:
            connection.close("client")

    def writable(self, connection: UpgradedConnection) -> None:
        """Go on sending."""
        with _Entered(connection, "writable"):
            note(connection.state_of_endpoint.name, "writable")
            push(connection)
            self._then(connection, "writable")

    def deadline(self, connection: UpgradedConnection) -> None:
        """Tell the client."""
        with _Entered(connection, "deadline"):
            say(connection, "deadline")
            self._then(connection, "deadline")

    def message(self, connection: UpgradedConnection, message: Any) -> None:
        """Pass it on to the client."""
        with _Entered(connection, "message"):
            say(connection, f"message {message}")
            self._then(connection, "message")

    def draining(self, connection: UpgradedConnection, seconds: float) -> None:
        """Tell the client."""
        with _Entered(connection, "draining"):
            note(connection.state_of_endpoint.name, "draining")
            say(connection, f"draining {seconds:.1f}")
            self._then(connection, "draining")

    def closed(self, connection: UpgradedConnection, reason: str) -> None:
        """Write it down."""
        talk = connection.state_of_endpoint
        note(talk.name, f"closed {reason}")
        self._then(connection, "closed")

    def _then(self, connection: UpgradedConnection, method: str) -> None:
        for command in connection.state_of_endpoint.then.get(method, ()):
            run(connection, command)


class _Entered:
    """Writes down when a method is called while another one runs."""

    def __init__(self, connection: UpgradedConnection, method: str) -> None:
        self._talk: Talk = connection.state_of_endpoint
        self._method = method

    def __enter__(self) -> None:
        if self._talk.inside:
            note(self._talk.name, f"overlap {self._method}")
        self._talk.inside = True

    def __exit__(self, *error: object) -> None:
        self._talk.inside = False


def run(connection: UpgradedConnection, line: str) -> None:
    """Carry out one command."""
    talk = connection.state_of_endpoint
    command, _, rest = line.partition(" ")
    match command:
        case "say":
            say(connection, rest)
        case "wake":
            connection.wake_after(None if rest == "never" else float(rest))
        case "large":
            talk.queue += pattern(int(rest))
            push(connection)
        case "sleep":
            gevent.sleep(float(rest))
        case "raise":
            raise ERRORS[rest]("asked for")
        case "close":
            connection.close(rest)
        case "on":
            method, _, then = rest.partition(" ")
            talk.then.setdefault(method, []).append(then)


def say(connection: UpgradedConnection, text: str) -> None:
    """Send a line."""
    connection.state_of_endpoint.queue += text.encode() + b"\n"
    push(connection)


def push(connection: UpgradedConnection) -> None:
    """Send what the client takes of what is to be sent."""
    queue = connection.state_of_endpoint.queue
    while queue:
        sent = connection.transmit(bytes(queue[: 1 << 20]))
        del queue[:sent]
        if not sent:
            return


def note(name: str, what: str) -> None:
    """Write an event down. One write each, so that nothing is lost when the process is."""
    if "EVENTS" in os.environ:
        file = os.open(os.environ["EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{name} {what}\n".encode())
        os.close(file)


_talkers = {kind: Talker(kind) for kind in ("websocket", "sse", "other")}
_connections: dict[str, UpgradedConnection] = {}


def application(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Answer by the table at the top of this module; "pong" for anything else."""
    query = parse_qs(environ["QUERY_STRING"])
    one = {name: values[0] for name, values in query.items()}
    match environ["PATH_INFO"]:
        case "/upgrade":
            return _upgrade(environ, one, query.get("run", []))
        case "/refused":
            return _refused(environ, start_response, one["how"])
        case "/do":
            for command in query["run"]:
                run(_connections[one["name"]], command)
            return _answer(start_response, b"done")
        case "/post":
            return _post(start_response, one)
        case "/metrics":
            return _answer(start_response, render(BOARD), CONTENT_TYPE)
    return _answer(start_response, _tell(environ["PATH_INFO"], one))


def _tell(path: str, one: dict[str, str]) -> bytes:
    match path:
        case "/alive":
            connection = _connections[one["name"]]
            return json.dumps({"alive": connection.alive, "descriptor": connection.fileno()}).encode()
        case "/figures":
            row = next(row for row in BOARD.rows() if row.pid == os.getpid())
            return json.dumps(dict(zip(scoreboard.FIELDS, row.values, strict=False))).encode()
        case "/log":
            for number in range(int(one["lines"])):
                logging.getLogger("gunicorn.error").warning("%s %s", number, "x" * int(one["size"]))
        case "/block":
            hold_the_loop_up(float(one["seconds"]))
        case "/pid":
            return str(os.getpid()).encode()
    return b"pong"


def _answer(start_response: Start, body: bytes, kind: str = "text/plain") -> list[bytes]:
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def _upgrade(environ: Environ, one: dict[str, str], commands: list[str]) -> Iterable[bytes]:
    environ["wsgi.input"].read()
    name = one.get("name", "nobody")
    hand_over(environ, name, one.get("kind", "other"))
    connection = _connections[name]
    for command in commands:
        run(connection, command)
    word, _, rest = one.get("after", "return").partition(" ")
    if word == "raise":
        raise ERRORS[rest]("raised after the hand-over")
    if word == "sleep":
        gevent.sleep(float(rest))
    return HANDLED


def hand_over(environ: Environ, name: str, kind: str) -> None:
    """Hand the request's connection over to a talker, under a name."""
    connection = environ["longconn.upgrade"](_talkers[kind], SWITCHED)
    connection.state_of_endpoint = Talk(name)
    _connections[name] = connection


def _refused(environ: Environ, start_response: Start, how: str) -> Iterable[bytes]:
    if how == "late":
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"begun, ")
        return [_error_of(environ)]
    if how == "twice":
        hand_over(environ, "twice", "other")
        say(_connections["twice"], _error_of(environ).decode())
        return HANDLED
    gevent.sleep(0.3)  # a body on its way arrives
    return _answer(start_response, _error_of(environ))


def _error_of(environ: Environ) -> bytes:
    try:
        hand_over(environ, "wrong", "other")
    except UpgradeError as error:
        return f"UpgradeError: {error}".encode()
    return b"no error"


def _post(start_response: Start, one: dict[str, str]) -> Iterable[bytes]:
    connection, count = _connections[one["name"]], int(one.get("messages", "1"))
    post = connection.post_from_thread if one.get("from") == "thread" else connection.post

    def post_all() -> None:
        for number in range(count):
            post(number)

    if one.get("from") == "thread":
        gevent.get_hub().threadpool.apply(post_all)
    else:
        post_all()
    return _answer(start_response, b"posted")


def hold_the_loop_up(seconds: float) -> None:
    """Sleep without gevent's knowing."""
    monkey.get_original("time", "sleep")(seconds)
