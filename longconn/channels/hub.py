"""The channels of one process: who listens here, and what they get.

One pump reads what was published anywhere on the host, and hands each message to all who listen here: encoded once for each
kind of subscriber, in the order of the channel, each message once. It runs on a thread of its own, which in a process that
gevent has patched is a greenlet of the loop: so nothing here locks out anybody for longer than one slice.

Whoever subscribes knows the number that it starts after. What is older it got from the history, what is newer it gets from
the pump.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from longconn.channels.asking import QUESTIONS, Answer, Answerer, Answers, ask
from longconn.channels.errors import ChannelError, ChannelsUnavailable, MessageRefused, PositionError
from longconn.channels.names import checked_label, checked_name, matcher
from longconn.channels.permits import Permit, Permits
from longconn.channels.ports import Broker, Following, History, HistoryLimits, Message, Position, Wire
from longconn.channels.waking import beside_the_loop, is_the_end

__all__ = ["Channels", "default_channels"]

SLICE: Final = 0.004
"""For how long, in seconds, the pump writes before everybody else has a turn."""
_IDLE: Final = 0.000_2
"""Seconds that a round of the loop takes at most when nobody had anything to do."""
_NEXT_LIFE: Final = 1 << 62
"""More than any number: nothing of this life of the storage is for whoever starts after it."""
_MOST_REMEMBERED: Final = 10_000
"""Channels whose limits are remembered, so that their patterns need not be looked through again."""

_hubs: weakref.WeakSet[Channels] = weakref.WeakSet()

_log = logging.getLogger("longconn.channels")

P = TypeVar("P", bound=Permit)


class _Audience:
    """Who listens to one channel in this process."""

    __slots__ = ("_group", "_more", "_wire", "ahead", "epoch", "last", "latest")

    def __init__(self, epoch: int, last: int) -> None:
        # Nearly every channel has subscribers of one kind only, and there may be as many channels as users.
        self._wire: Wire | None = None
        self._group: dict[Any, int] = {}
        self._more: dict[Wire, dict[Any, int]] | None = None
        self.ahead: dict[Any, int] | None = None
        """Who begins in a later life of the storage than the audience is in, and after which number."""
        self.epoch = epoch
        self.last = last
        """The newest number that was handed on."""
        self.latest = last
        """The greatest number that anybody starts after."""

    def group(self, wire: Wire) -> dict[Any, int]:
        """The subscribers of one kind, each with the number that it starts after."""
        if self._wire is None:
            self._wire = wire
        if self._wire is wire:
            return self._group
        if self._more is None:
            self._more = {}
        return self._more.setdefault(wire, {})

    def groups(self) -> list[tuple[Wire, dict[Any, int]]]:
        """All kinds of subscribers, as they are now."""
        groups = [(self._wire, self._group)] if self._wire is not None else []
        if self._more is not None:
            groups.extend(self._more.items())
        return groups

    def __len__(self) -> int:
        return len(self._group) + (sum(map(len, self._more.values())) if self._more else 0)


class Channels:
    """Publish and subscribe on the channels of `broker`, on all processes that have the same one.

    `broker` may be a function that makes it when it is first needed. `history` says what a channel keeps, `history_of` what
    some of them keep instead: a mapping from patterns (`*` is any run of characters; the first that fits counts), or a
    function of the channel's name that may return None. `authorize(user, channel, action)` decides where no rule of
    `authorizes` does.

    Publishing, reading and asking are for any thread. Subscribing is for the thread of the loop where there is one.
    """

    def __init__(
        self,
        broker: Broker | Callable[[], Broker],
        *,
        history: HistoryLimits = HistoryLimits(),  # noqa: B008 - frozen
        history_of: Mapping[str, HistoryLimits] | Callable[[str], HistoryLimits | None] | None = None,
        authorize: Permit | None = None,
    ) -> None:
        self._given = broker
        self._broker: Broker | None = None
        self._limits = history
        self._limits_of = _chooser(history_of)
        self._remembered: dict[str, HistoryLimits] = {}
        self._permits = Permits(authorize)
        self._answerer = Answerer()
        # The interpreter's own, also where gevent has patched the process: greenlets do not switch while they hold it, so on
        # the loop's thread nobody ever waits for it.
        self._lock = _thread.RLock()
        self._begin()
        _hubs.add(self)

    def _begin(self) -> None:
        """As a new process begins: with nobody who listens."""
        self._audiences: dict[str, _Audience] = {}
        self._following: Following | None = None
        self._cursor = 0
        self._until = 0.0
        self._failing = False
        self._left = 0

    @property
    def broker(self) -> Broker:
        """What carries the messages."""
        broker = self._broker
        if broker is None:
            with self._lock:
                if self._broker is None:
                    self._broker = self._given() if callable(self._given) else self._given
                broker = self._broker
        return broker

    # Publishing and reading.

    def publish(self, channel: str, data: Any, *, event: str = "", key: str = "") -> Position:
        """Send `data` to all who listen to `channel`, on all workers, and keep it in the channel's history. Never waits for
        them.

        `data` is text or bytes; anything else that JSON has goes as compact JSON. `event` names its kind, and messages of
        the same `key` replace each other for clients that lag behind, where their endpoint conflates.

        Raises `ChannelNameError`, `MessageRefused` and `ChannelsUnavailable`.
        """
        name = checked_name(channel)
        if not isinstance(data, (str, bytes)):
            data = _as_text(data)
        message = self.broker.publish(
            name,
            data,
            event=checked_label(event, "event"),
            key=checked_label(key, "key"),
            history=self.limits(name),
            at=time.time(),
        )
        return message.position

    def history(self, channel: str, since: Position | str | None = None, most: int | None = None) -> History:
        """What `channel` still holds after the position `since` (None: all that it holds), at most the newest `most`
        messages.

        Raises `ChannelNameError`, `PositionError` and `ChannelsUnavailable`.
        """
        if most is not None and most < 1:
            raise ChannelError(f"most={most!r}: a number of messages, 1 at least")
        return self.broker.history(checked_name(channel), _position(since), most=most, now=time.time())

    def limits(self, channel: str) -> HistoryLimits:
        """What `channel` keeps."""
        limits = self._remembered.get(channel)
        if limits is None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            limits = self._remembered[channel] = self._limits_of(channel) or self._limits
        return limits

    # Listening.

    def subscribe(
        self,
        subscriber: Any,
        channel: str,
        wire: Wire,
        *,
        since: Position | str | None = None,
        before: Callable[[History], None] | None = None,
    ) -> History:
        """Have `subscriber` get what is published on `channel` from now on, each message once and in order, by `wire`.

        Returns what the channel holds after `since` (`""` or position 0-0: all it holds; None: nothing), which this does not
        send. Whoever called does so: at once, or in `before`. That is called with it while nothing new is written yet, may
        wait, and is called again with what was published meanwhile, until nothing was; only then the subscriber listens. What
        is returned is all of that. When `before` raises, nobody listens. One who subscribes again begins again.

        Raises `ChannelNameError`, `PositionError` and `ChannelsUnavailable`; `RuntimeError` on a thread without the loop.
        """
        name = checked_name(channel)
        wanted = _position(since) if since is not None else None
        self.start()
        if self._following is None:
            raise RuntimeError("channels are listened to on the thread of the loop: this is another one")
        self.unsubscribe(subscriber, name)
        if before is None:
            with self._lock:
                history = self._held(name, wanted, everything=since is not None)
                self._listen(subscriber, name, wire, history.position)
            return history
        history = self._held(name, wanted, everything=since is not None)
        before(history)
        while True:
            with self._lock:
                more = self.broker.history(name, history.position, now=time.time())
                if more.complete and not more.messages:
                    self._listen(subscriber, name, wire, more.position)
                    return history
            before(more)
            complete = history.complete and more.complete
            history = History(history.messages + more.messages, complete, more.position)

    def _held(self, name: str, since: Position | None, *, everything: bool) -> History:
        if everything:
            return self.broker.history(name, since, now=time.time())
        return History((), True, self.broker.position(name))

    def _listen(self, subscriber: Any, name: str, wire: Wire, position: Position) -> None:
        """Hand on what comes after `position`."""
        epoch, number = position
        audience = self._audiences.get(name)
        if audience is None:
            audience = self._audiences[name] = _Audience(epoch, number)
        elif audience.epoch != epoch:
            # The storage was lost, and the pump has not noticed yet. This one begins in the new life already.
            audience.ahead = {**(audience.ahead or {}), subscriber: number}
            number = _NEXT_LIFE
        if number == audience.latest:
            number = audience.latest  # one object for all who start here, and not one each
        elif number > audience.latest:
            audience.latest = number
        audience.group(wire)[subscriber] = number

    def unsubscribe(self, subscriber: Any, channel: str) -> bool:
        """Nothing more of `channel` for `subscriber`, not even what is being handed out. Returns whether it listened. Never
        waits."""
        with self._lock:
            audience = self._audiences.get(channel)
            if audience is None:
                return False
            found = False
            for _, group in audience.groups():
                if group.pop(subscriber, None) is not None:
                    found = True
                    self._left += 1
                    if audience.ahead is not None:
                        audience.ahead.pop(subscriber, None)
            if not audience:
                del self._audiences[channel]
            return found

    def subscribers(self, channel: str) -> int:
        """How many listen to `channel` in this process."""
        audience = self._audiences.get(channel)
        return len(audience) if audience is not None else 0

    def counts(self) -> dict[str, int]:
        """How many listen in this process, by channel."""
        with self._lock:
            return {name: len(audience) for name, audience in self._audiences.items()}

    def start(self) -> None:
        """Hear what is published, and answer questions, from now on. Whoever subscribes need not call it. Does nothing when it
        was called in this process before; nor on a native thread beside a loop of greenlets, which is not to run there.

        Raises `ChannelsUnavailable`.
        """
        following = self._following
        if following is not None and not following.ended:
            return
        if beside_the_loop():
            return
        with self._lock:
            if self._following is None:
                self._cursor = self.broker.cursor()
            elif not self._following.ended:
                return
            self._following = self.broker.follow(self._pump)
            self._following.start()

    def close(self) -> None:
        """Hear nothing more, and give back what it holds. It begins anew when it is used again."""
        with self._lock:
            following, broker = self._following, self._broker
            self._begin()
        if following is not None:
            following.stop()
        if broker is not None:
            broker.close()

    # Permission.

    def authorizes(self, pattern: str) -> Callable[[P], P]:
        """Have the decorated `permit(user, channel, action)` decide for the channels of `pattern`: `action` is "subscribe",
        "publish" or "history", `user` whoever the endpoint knows (None: nobody known). The first pattern that fits counts.

        Raises `ChannelNameError` for a pattern that no channel could fit.
        """
        return lambda permit: self._permits.add(pattern, permit)

    def may(self, user: Any, channel: str, action: str) -> None:
        """Raises `ChannelForbidden` unless `user` may do `action` with `channel`, and `ChannelNameError` for a name that is
        none."""
        self._permits.check(user, checked_name(channel), action)

    # Questions.

    def answers(self, topic: str, function: Answer) -> None:
        """Have `function(question)` answer what any process asks about `topic`; None is no answer. It runs on a thread (a
        greenlet where threads are greenlets) of its own, in every process that has called `start`."""
        self._answerer.add(topic, function)

    def ask(self, topic: str, question: Mapping[str, Any], *, timeout: float = 1.0) -> Answers:
        """What all processes that have started say about `topic`, this one included: a list of dictionaries, each with its
        `pid`. `.silent` has the process ids of those that said nothing within `timeout` seconds.

        Raises `ChannelsUnavailable`.
        """
        return ask(self.broker, topic, question, timeout=timeout)

    # The pump.

    def _pump(self) -> None:
        """Hand on all there is. Called by the broker, on the pump's thread."""
        following = self._following
        if following is None:
            return  # it was closed just now
        self._until = time.monotonic() + SLICE
        try:
            more = True
            while more and self._following is following:
                news = self.broker.news(self._cursor)
                if news.missed:
                    self._catch_up()
                for message in news.messages:
                    self._deal_with(message, following)
                if self._following is following:
                    self._cursor = news.cursor
                more = bool(news.messages)
            self._failing = False
        except ChannelsUnavailable as error:
            if not self._failing:
                _log.warning("no messages of any channel for now: %s", error)
            self._failing = True

    def _deal_with(self, message: Message, following: Following) -> None:
        if message.channel in self._audiences:
            self._hand_on(message)
            if time.monotonic() > self._until:
                self._rest()
        elif message.channel == QUESTIONS:
            self._answerer.asked(self.broker, following.name, message)

    def _hand_on(self, message: Message) -> None:
        number = message.position.number
        with self._lock:
            audience = self._audiences.get(message.channel)
            if audience is None or (number <= audience.last and message.position.epoch == audience.epoch):
                return
            if message.position.epoch != audience.epoch:
                self._tell(audience, message.channel, History((message,), False, message.position))
            audience.last = number
            groups = audience.groups()
        for wire, group in groups:
            try:
                self._write(audience, wire, group, message)
            except BaseException as error:
                if is_the_end(error):
                    raise
                _log.exception("a message of channel %s did not reach all who listen", message.channel)

    def _write(self, audience: _Audience, wire: Wire, group: dict[Any, int], message: Message) -> None:
        """Write one message to one kind of subscribers, a slice at a time."""
        number = message.position.number
        with self._lock:
            left = self._left
            if number > audience.latest:
                subscribers = list(group)
            else:
                subscribers = [subscriber for subscriber, start in group.items() if start < number]
        if not subscribers:
            return
        encoded = wire.encode(message)  # an application's code, which may wait
        first = 0
        while True:
            with self._lock:
                if left != self._left:
                    # Somebody has left meanwhile, and gets nothing more.
                    left = self._left
                    subscribers = [one for one in subscribers[first:] if group.get(one, number) < number]
                    first = 0
                first = wire.write(subscribers, first, encoded, message, self._until)
            if first >= len(subscribers):
                return
            self._rest()

    def _rest(self) -> None:
        """Let others run: for one round of the loop when they have nothing to do, for as long as a slice when they have."""
        began = now = time.monotonic()
        while now < began + SLICE:
            before = now
            time.sleep(0)
            now = time.monotonic()
            if now - before < _IDLE:
                break
        self._until = now + SLICE

    def _catch_up(self) -> None:
        """Some news were thrown away before they were read here: what is missing comes from the histories, as far as they
        go."""
        for name in list(self._audiences):
            with self._lock:
                audience = self._audiences.get(name)
                if audience is None:
                    continue
                since = Position(audience.epoch, audience.last)
                history = self.broker.history(name, since, now=time.time())
                if not history.complete:
                    self._tell(audience, name, history)
            for message in history.messages:
                self._hand_on(message)
            if time.monotonic() > self._until:
                self._rest()

    def _tell(self, audience: _Audience, name: str, history: History) -> None:
        """Tell all whom it concerns that messages are lost for them."""
        epoch, newest = history.position
        lost = history.messages[0].position.number - 1 if history.messages else newest
        if epoch != audience.epoch:
            # The storage was lost, and counts again: whatever the numbers were, everybody starts before those that are lost,
            # but for those who began since.
            ahead, audience.ahead, audience.epoch = audience.ahead or {}, None, epoch
            audience.latest = lost
            for _, group in audience.groups():
                for subscriber in group:
                    start = group[subscriber] = ahead.get(subscriber, lost - 1)
                    audience.latest = max(audience.latest, start)
        for wire, group in audience.groups():
            for subscriber, start in list(group.items()):
                if start < lost:
                    try:
                        wire.missed(subscriber, name, Position(epoch, lost))
                    except BaseException as error:
                        if is_the_end(error):
                            raise
                        _log.exception("who listens to channel %s was not told what is lost", name)
        audience.last = lost


def _after_fork() -> None:
    """In a child nobody listens yet; and whoever held a lock in the parent is not here to let it go."""
    for hub in list(_hubs):
        hub._lock = _thread.RLock()  # noqa: SLF001 - of this module
        hub._begin()  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork)


def default_channels(import_name: str, root_path: str = "", *, settings: Any = None, **options: Any) -> Channels:
    """The channels of an application on this host: where LONGCONN_CHANNELS says, or else in a folder of the application's
    own.

    Opens nothing yet. `settings` are `longconn.Settings`, else read from the environment; `options` are those of
    `Channels`.
    """

    def broker() -> Broker:
        from longconn.channels.lmdb_broker import LmdbBroker
        from longconn.channels.places import folder, name_of
        from longconn.settings import Settings

        chosen = Settings.from_environment(os.environ) if settings is None else settings
        place = folder(chosen.channels or name_of(import_name, root_path))
        return LmdbBroker(place, size=chosen.channels_size)

    return Channels(broker, **options)


def _chooser(
    history_of: Mapping[str, HistoryLimits] | Callable[[str], HistoryLimits | None] | None,
) -> Callable[[str], HistoryLimits | None]:
    if history_of is None:
        return lambda _channel: None
    if callable(history_of):
        return history_of
    rules = [(matcher(pattern), limits) for pattern, limits in history_of.items()]
    return lambda channel: next((limits for fits, limits in rules if fits(channel)), None)


def _position(since: Position | str | None) -> Position | None:
    """A position as the broker takes it: None for the beginning."""
    if isinstance(since, str) and since:
        try:
            since = Position.parse(since)
        except ValueError as error:
            raise PositionError(str(error)) from None
    if not since or since == Position(0, 0):
        return None
    assert isinstance(since, Position)
    return since


def _as_text(data: Any) -> str:
    try:
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageRefused(f"a message is text, bytes or what JSON has: {error}") from None
