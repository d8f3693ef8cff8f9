"""Views that answer with an event stream, or with the answer to a long poll.

    @app.get("/events/<channel>")
    def events(channel):
        return event_stream(channel)

    @app.get("/poll/<channel>")
    def poll(channel):
        return long_poll(channel)

On the parking worker the connection of such an answer parks until something comes. On any other server, and in tests, the
answer waits in its greenlet or thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import flask
from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, ServiceUnavailable
from werkzeug.http import http_date

from longconn.adapters import channels_of
from longconn.channels.errors import ChannelError
from longconn.channels.names import checked_name
from longconn.channels.ports import History, Message, Position
from longconn.identity import Identity
from longconn.streaming.event_streams import EventStream, seconds_left
from longconn.streaming.listening import stream
from longconn.streaming.long_polls import Describe, LongPoll, described, document
from longconn.streaming.options import EventStreamOptions
from longconn.streaming.positions import MOST_CHANNELS, read_positions
from longconn.upgraded import HANDLED, About, UpgradedConnection

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from longconn.channels.hub import Channels

__all__ = ["event_stream", "long_poll"]

LONGEST_WAIT: Final = 300.0
"""Seconds for which a poll waits at most, whatever its client asks for."""
MOST_MESSAGES: Final = 1000

LARGEST_BODY: Final = 65_536
"""Bytes of a request's body that are thrown away, should the view have left any."""
_OF_THE_CONNECTION: Final = frozenset(
    {"connection", "content-length", "date", "keep-alive", "transfer-encoding", "upgrade"}
)
"""Fields that say how this answer is framed, and are not the application's."""


def event_stream(
    *names: str,
    since: Position | str | None = None,
    user: Any = None,
    identity: Identity | None = None,
    encode: Callable[[Message], str] | None = None,
    on_end: Callable[[UpgradedConnection, str], None] | None = None,
    channels: Channels | None = None,
    **options: Any,
) -> flask.Response:
    """The answer to a client that listens to the channels `names` by server-sent events (an `EventSource` in a browser).

    Each message is an event with its data, its event's name and an id. A client that comes back with its last id (the field
    Last-Event-ID, or `last_event_id` or `since` in the query) gets what it has missed, or an event `missed` when some of that
    is kept no longer. One that does not say where it was begins at `since`: None is from now on, "earliest" all that is kept.

    `user`, or an `Identity` that may have an end, says who listens, for the channels' own rules, for lists and kicks. `encode`
    makes an event's text of a message. `on_end(connection, reason)` is called when a parked stream has ended; it must not wait.
    `channels` are the application's own when not given. `options` are those of `EventStreamOptions`.

    Raises, for Flask to answer, `BadRequest` for a channel or a position that is none, `Forbidden` when the caller may not
    hear a channel, `ServiceUnavailable` when the channels are out of order; `ValueError` for an option out of range.
    """
    chosen = EventStreamOptions(**options)
    hub = channels or channels_of(flask.current_app)
    asked = _checked(hub, names, user if identity is None else identity.user)
    positions, lost = _positions(asked, since)
    endpoint = EventStream.of(
        hub,
        asked,
        options=chosen,
        encode=encode,
        ended=on_end,
    )
    return _Stream(endpoint, positions, lost=lost, about=_about(user, identity))


def long_poll(
    name: str,
    *,
    since: Position | str | None = None,
    wait: float | None = None,
    most: int = 100,
    user: Any = None,
    identity: Identity | None = None,
    describe: Describe | None = None,
    channels: Channels | None = None,
) -> flask.Response:
    """The answer to a client that asks for the messages of the channel `name` again and again.

    It is JSON: `messages` (each with `position`, `data`, `event`, `key` and `at`, at most `most` of them), `position`, from
    which to ask next, and `complete`, which is false when messages before these are kept no longer. What there is after `since`
    (in the query, else the argument; None is from now on, "earliest" all that is kept) is answered at once. When there is
    nothing, the answer waits for the first message, for `wait` seconds (in the query, else the argument, else 25; 300 at most),
    and no longer than its `identity` is good. `describe(message)` makes what stands in `messages` for a message: anything that
    JSON has.

    Raises as `event_stream` does.
    """
    if not 1 <= most <= MOST_MESSAGES:
        raise ValueError(f"most={most!r}: an answer has from 1 to {MOST_MESSAGES} messages")
    hub = channels or channels_of(flask.current_app)
    asked = _checked(hub, (name,), user if identity is None else identity.user)
    position = _positions(asked, since)[0].get(name)
    seconds = _seconds(flask.request.args.get("wait"), 25.0 if wait is None else wait)
    seconds = min(seconds, seconds_left(identity))
    found = _held(hub, name, position)
    if found.messages or not found.complete or seconds == 0:
        return _answer(document(found, most, describe or described))
    endpoint = LongPoll(hub, name, seconds=seconds, most=most, describe=describe or described)
    return _Poll(endpoint, found.position if position is None else position, about=_about(user, identity))


def _about(user: Any, identity: Identity | None) -> About:
    """Who asks, for as long as the answer lasts."""
    if identity is not None:
        user = identity.user
    elif hasattr(user, "_get_current_object"):
        user = user._get_current_object()  # noqa: SLF001 - Werkzeug's; what stands for it ends with the request
    return About(user, identity, path=flask.request.path, address=flask.request.remote_addr or "")


def _held(hub: Channels, name: str, position: Position | None) -> History:
    with _for_flask():
        if position is not None:
            return hub.history(name, position)
        return History((), complete=True, position=hub.broker.position(name))


def _checked(hub: Channels, names: tuple[str, ...], user: Any) -> tuple[str, ...]:
    """The channels, each once, which `user` may hear."""
    if not names:
        raise TypeError("a stream has one channel at least: event_stream(channel)")
    with _for_flask():
        unique = tuple(dict.fromkeys([checked_name(name) for name in names]))
        if len(unique) > MOST_CHANNELS:
            raise BadRequest(
                f"A stream has at most {MOST_CHANNELS} channels, and this one asks for {len(unique)}: open several streams."
            )
        for name in unique:
            hub.may(user, name, "subscribe")
    return unique


def _positions(names: tuple[str, ...], since: Position | str | None) -> tuple[Mapping[str, Position], bool]:
    """Where the client was, as far as it says, and whether it said something that nobody understands."""
    request = flask.request
    last = request.headers.get("Last-Event-ID", "")
    if last:
        try:
            return read_positions(last, names), False
        except ValueError:
            return {}, True  # a browser sends what it was once given, and would never come back from an error
    text = request.args.get("last_event_id") or request.args.get("since") or ""
    try:
        if text:
            return read_positions(text, names), False
        if isinstance(since, Position):
            return dict.fromkeys(names, since), False
        return (read_positions(since, names) if since else {}), False
    except ValueError as error:
        raise BadRequest(f'{error}. Leave it out, or write "earliest".') from error


def _seconds(text: str | None, wait: float) -> float:
    if text is not None:
        try:
            wait = float(text)
        except ValueError:
            wait = -1.0
    if not (isfinite(wait) and wait >= 0):
        raise BadRequest(f"wait={text!r} is no number of seconds from 0.")
    return min(wait, LONGEST_WAIT)


@contextmanager
def _for_flask() -> Iterator[None]:
    """Turns errors of channels into those that Flask answers, and that an application's error handlers render."""
    try:
        yield
    except ChannelError as error:
        raise _STATUS.get(error.status, BadRequest)(str(error)) from error


_STATUS: Final[Mapping[int, type[HTTPException]]] = {403: Forbidden, 503: ServiceUnavailable}


class _Later:
    """A body that is begun when a server asks for it, and never on one that parks the connection."""

    def __init__(self, begin: Callable[[], Iterator[bytes]]) -> None:
        self._begin = begin
        self._body: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        self._body = self._begin()
        return self._body

    def close(self) -> None:
        """Give back what the body holds."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


class _Waiting(flask.Response):
    """An answer whose connection waits: parked, when the server does that."""

    # Whoever asks for the whole body would wait for ever.
    implicit_sequence_conversion = False

    def __init__(self, body: Callable[[], Iterator[bytes]], mimetype: str) -> None:
        fields = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_Later(body), mimetype=mimetype, headers=fields)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Park the connection, or wait here."""
        upgrade = environ.get("longconn.upgrade")
        if upgrade is None or environ["REQUEST_METHOD"] == "HEAD" or self.status_code != 200:
            return super().__call__(environ, start_response)
        try:
            environ["wsgi.input"].read(LARGEST_BODY)  # a connection is not handed over in the middle of a request
            self.park(upgrade, self._head(environ))
        finally:
            self.close()
        return HANDLED

    def park(self, upgrade: Callable[..., UpgradedConnection], head: bytes) -> None:
        """Hand the connection over. `head` is that of the answer, without the empty line at its end."""
        raise NotImplementedError

    def _head(self, environ: WSGIEnvironment) -> bytes:
        fields = self.get_wsgi_headers(environ).to_wsgi_list()
        lines = [f"HTTP/1.1 {self.status}", f"Date: {http_date()}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in fields if name.lower() not in _OF_THE_CONNECTION]
        return "\r\n".join([*lines, ""]).encode("latin-1")


class _Stream(_Waiting):
    """The answer that is an event stream."""

    def __init__(self, endpoint: EventStream, positions: Mapping[str, Position], *, lost: bool, about: About) -> None:
        def body() -> Iterator[bytes]:
            return stream(endpoint, positions, lost=lost, identity=about.identity)

        super().__init__(body, "text/event-stream")
        self._endpoint = endpoint
        self._positions = positions
        self._lost = lost
        self._about = about

    def park(self, upgrade: Callable[..., UpgradedConnection], head: bytes) -> None:
        """Hand the connection over, and subscribe it."""
        connection = upgrade(self._endpoint, head + b"\r\n")
        about = _beside(self._about, connection)
        self._endpoint.begin(connection, self._positions, lost=self._lost, about=about)


class _Poll(_Waiting):
    """The answer that comes when there is something to say."""

    def __init__(self, endpoint: LongPoll, position: Position, *, about: About) -> None:
        super().__init__(lambda: iter([endpoint.wait(position)]), "application/json")
        self._endpoint = endpoint
        self._position = position
        self._about = about

    def park(self, upgrade: Callable[..., UpgradedConnection], head: bytes) -> None:
        """Hand the connection over; the head waits with it, since the length of the answer is not known."""
        self._endpoint.head = head
        connection = upgrade(self._endpoint)
        self._endpoint.begin(connection, self._position, _beside(self._about, connection))


def _beside(about: About, connection: UpgradedConnection) -> About:
    """`about`, without the address where it is the connection's own."""
    return replace(about, address="") if about.address == connection.host else about


def _answer(body: bytes) -> flask.Response:
    return flask.Response(body, mimetype="application/json", headers={"Cache-Control": "no-store"})
