"""The composition root: settings become objects. The one module that names implementations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import longconn
from longconn.channels.hub import Channels, default_channels
from longconn.channels.ports import HistoryLimits
from longconn.configuration import hooks
from resilience import CircuitBreaker, RateLimiter, open_storage
from resilience.ports import LimitStorage, StateStorage
from resilience.storage.standin import StandInStorage
from resilience.storage.state_address import open_state_storage
from service.clients.backends import build_backends
from service.data.database import Database, open_database
from service.data.users import SqlUserRepository
from service.lifecycle import Check, Checks, Lifecycle, process
from service.middleware.authentication import Authenticator
from service.processors import available_processors
from service.security.passwords import PasswordHasher
from service.security.tickets import SpentInFolder, SpentInMemory, TicketSigner
from service.security.tokens import TokenSigner
from service.services.auth import AuthService
from service.services.channels import DEMO, LIVE
from service.services.ports import Backend
from service.services.users import UserService
from service.settings import Settings, SettingsError

__all__ = ["Parts", "build_parts"]

# Below the second that probes usually wait for.
CHECK_TIMEOUT = 0.9
PING_TIMEOUT = 0.8

SPENT_TICKETS = "tickets"
GUEST_RATE = "5/second"
GUEST_BURST = 20
KEPT_OF_GUESTS = 262_144
"""Bytes of messages that each channel of guests keeps."""

FEWEST_OF_THE_LARGEST = 4
"""Messages of the largest size that a channel keeps, if it is to keep so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an application is put together from. `circuits` are listed by the admin endpoint; `limiter` guards every
    request, `login_limiter` the tries to sign in, `guest_limiter` what each guest says; `storage` holds the buckets of all,
    `state` the circuits and what operators have ordered; `channels` carry messages between all workers."""

    users: UserService
    auth: AuthService
    backends: Mapping[str, Backend]
    circuits: tuple[CircuitBreaker, ...]
    authenticator: Authenticator
    tokens: TokenSigner
    tickets: TicketSigner
    channels: Channels
    storage: LimitStorage
    state: StateStorage
    limiter: RateLimiter
    login_limiter: RateLimiter
    guest_limiter: RateLimiter
    checks: Checks
    lifecycle: Lifecycle


def build_parts(settings: Settings, *, lifecycle: Lifecycle = process) -> Parts:
    """The parts that `settings` describe. They are given back when `lifecycle` shuts down.

    Connects to nothing yet. Under gevent, call it after patching. Raises `SettingsError` for one that cannot be used.
    """
    database = open_database(settings)
    lifecycle.on_shutdown("database", database.close)
    hasher = PasswordHasher(threads=settings.password_threads, waiting=settings.password_queue)
    lifecycle.on_shutdown("password threads", hasher.close)
    signer = _signer(settings)
    users = SqlUserRepository(database)
    backends = build_backends(settings)
    for name, backend in backends.items():
        lifecycle.on_shutdown(f"connections to {name}", backend.close)
    storage, state = _storage(settings), _state(settings)
    channels = _channels(settings)
    lifecycle.on_shutdown("channels", channels.close)
    return Parts(
        users=UserService(users, hasher),
        auth=AuthService(users, hasher, signer),
        backends=backends,
        circuits=tuple(backend.circuit for backend in backends.values()),
        authenticator=signer,
        tokens=signer,
        tickets=_tickets(settings),
        channels=channels,
        storage=storage,
        state=state,
        limiter=_limiter("default", settings.rate_limit, settings.rate_limit_burst, setting="rate_limit"),
        login_limiter=_limiter("login", settings.login_rate_limit, None, setting="login_rate_limit"),
        guest_limiter=RateLimiter(GUEST_RATE, burst=GUEST_BURST, name="guests"),
        checks=Checks(_checks(database, storage, state)),
        lifecycle=lifecycle,
    )


def _signer(settings: Settings) -> TokenSigner:
    previous = settings.token_secret_previous
    return TokenSigner(
        settings.token_secret.get_secret_value(),
        previous=None if previous is None else previous.get_secret_value(),
        lifetime=settings.token_lifetime,
    )


def _tickets(settings: Settings) -> TicketSigner:
    previous = settings.token_secret_previous
    directory = settings.peer_directory  # where the workers of this service meet, if there are several
    return TicketSigner(
        settings.token_secret.get_secret_value(),
        previous=None if previous is None else previous.get_secret_value(),
        lifetime=settings.ticket_lifetime,
        spent=SpentInMemory() if directory is None else SpentInFolder(Path(directory) / SPENT_TICKETS),
    )


def _channels(settings: Settings) -> Channels:
    try:
        # As the worker reads them, which knows more of it (gunicorn.conf.py) when it is there.
        worker = longconn.Settings.from_environment(
            os.environ, defaults={"channels": settings.channel_place, **hooks().defaults}
        )
    except longconn.SettingsError as error:
        raise SettingsError("\n  ".join(error.problems)) from None
    kept = HistoryLimits(
        count=settings.channel_history,
        size=max(HistoryLimits().size, FEWEST_OF_THE_LARGEST * settings.message_limit),
        age=settings.channel_history_age,
    )
    # What guests say must not push out what others keep.
    of_guests = replace(kept, size=max(KEPT_OF_GUESTS, 2 * settings.message_limit))
    # Of the counters only the latest are news.
    of_some = {LIVE: HistoryLimits(count=1, size=65_536, age=60.0), **dict.fromkeys(DEMO, of_guests)}
    return default_channels("service", settings=worker, history=kept, history_of=of_some)


def _storage(settings: Settings) -> LimitStorage:
    try:
        return open_storage(
            settings.limit_storage,
            on_store_failure=settings.resilience_on_store_failure,
            timeout=settings.resilience_storage_timeout,
            namespace=settings.resilience_storage_namespace,
            workers=settings.web_concurrency or available_processors(),
        )
    except (ValueError, ImportError) as error:
        raise _unusable("resilience_storage_uri", error) from None


def _state(settings: Settings) -> StateStorage:
    try:
        return open_state_storage(
            settings.state_storage,
            namespace=settings.resilience_storage_namespace,
            timeout=settings.resilience_state_timeout,
        )
    except (ValueError, ImportError) as error:
        raise _unusable("resilience_state_uri", error) from None


def _unusable(setting: str, error: ValueError | ImportError) -> SettingsError:
    if isinstance(error, ImportError):
        return SettingsError(f"{setting}: {error}")
    # Without the library's words for it, which may repeat the address: it may hold a password.
    return SettingsError(
        f"{setting}: must be memory://, shm://<name>, or the address of a Redis-compatible server, "
        "such as redis://127.0.0.1:6379/0"
    )


def _limiter(name: str, rate: str, burst: int | None, *, setting: str) -> RateLimiter:
    try:
        return RateLimiter(rate, burst=burst, name=name)
    except ValueError as error:
        raise SettingsError(f"{setting}: {error}") from None


def _checks(database: Database, storage: LimitStorage, state: StateStorage) -> list[Check]:
    checks = [Check("database", critical=True, timeout=CHECK_TIMEOUT, function=lambda: database.ping(PING_TIMEOUT))]
    if isinstance(storage, StandInStorage):
        # Not critical: while the shared storage is down, its stand-in decides.
        checks.append(Check("rate limit storage", critical=False, timeout=CHECK_TIMEOUT, function=_looking_at(storage)))
    if state.spans_hosts:
        # Nor this: while it is down, each worker goes on with circuits of its own.
        checks.append(
            Check("circuit storage", critical=False, timeout=CHECK_TIMEOUT, function=lambda: state.read("health"))
        )
    return checks


def _looking_at(storage: StandInStorage) -> Callable[[], None]:
    # A cost of 0 looks at a bucket and takes nothing.
    probe = RateLimiter("1/second", name="health", key="health", cost=0, storage=storage)

    def look() -> None:
        probe.try_acquire()
        if not storage.available:
            raise ConnectionError(f"{storage.uri} does not answer")

    return look
