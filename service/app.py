"""The application: Flask, with a chain of middlewares around every request."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import flask
import gevent
import orjson
import structlog
from flask.json.provider import JSONProvider
from werkzeug.exceptions import RequestEntityTooLarge

from longconn import metrics
from longconn.adapters.event_streams import event_stream, long_poll
from longconn.adapters.websockets import WebSockets
from longconn.channels.errors import ChannelsUnavailable
from longconn.errors import LongConnError
from longconn.roster import Roster
from longconn.worker import BOARD
from resilience import Resilience, create_admin_blueprint
from resilience.adapters.admin.access import authorize, token_is_right
from resilience.adapters.admin.orders import record
from resilience.adapters.metrics import render_metrics
from resilience.adapters.options import Source
from service import logs, problems
from service.middleware.access_log import metered
from service.middleware.chain import build_chain, compose
from service.middleware.link import Middleware
from service.middleware.listener import came_in_on_admin_listener
from service.model import user_name
from service.processors import available_processors
from service.routes import health
from service.routes.access import public
from service.routes.auth import create_auth_blueprint
from service.routes.backends import create_backends_blueprint
from service.routes.channels import create_channels_blueprint
from service.routes.connections import create_connections_blueprint
from service.routes.credentials import SUBPROTOCOL, Credentials
from service.routes.demo import create_demo_blueprint
from service.routes.metrics import create_metrics_blueprint
from service.routes.sockets import ChannelSocket
from service.routes.tickets import create_tickets_blueprint
from service.routes.users import create_users_blueprint
from service.services.backends import Backends
from service.services.channels import ChannelService
from service.services.live import LiveCounters
from service.settings import Settings
from service.wiring import Parts, build_parts

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Service", "create_app", "send_away"]

OPTIONS: Final = {
    "storage_uri": "resilience_storage_uri",
    "storage_timeout": "resilience_storage_timeout",
    "storage_namespace": "resilience_storage_namespace",
    "on_store_failure": "resilience_on_store_failure",
    "workers": "web_concurrency",
    "state_uri": "resilience_state_uri",
    "state_timeout": "resilience_state_timeout",
    "trusted_proxies": "trusted_proxies",
    "admin_token": "resilience_admin_token",
    "admin_port": "admin_port",
    "peer_directory": "peer_directory",
}
"""The library's options that are settings of the service, and what they are called there."""


AROUND_A_MESSAGE: Final = 4_096
"""Bytes of a message over a WebSocket beside what is published with it."""

HANDSHAKES_OVER: Final = 3.0
"""Seconds in which a connection that was being opened is open."""

_log = structlog.get_logger("service.app")


class OrjsonProvider(JSONProvider):
    """JSON by orjson: dataclasses, dates and UUIDs are known, what is not raises `TypeError`."""

    def dumps(self, obj: Any, **_: Any) -> str:
        """`obj` as JSON text."""
        return orjson.dumps(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """The value in the JSON text `s`. Raises `ValueError` when it is not JSON."""
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> flask.Response:
        """`obj` as a response."""
        text = orjson.dumps(self._prepare_response_obj(args, kwargs))
        return flask.Response(text, mimetype="application/json")


class ServiceRequest(flask.Request):
    """A request whose body is refused when it is longer than allowed, also when nothing said how long it would be."""

    def get_data(self, *args: Any, **kwargs: Any) -> Any:
        """The body. Raises `RequestEntityTooLarge`."""
        data = super().get_data(*args, **kwargs)
        # Werkzeug cuts a chunked body off at the maximum without a word, so one byte more is asked for.
        at_the_limit = self.content_length is None and len(data) == self.max_content_length
        if at_the_limit and self.environ["wsgi.input"].read(1):
            raise RequestEntityTooLarge
        return data


class Service(flask.Flask):
    """Flask, where `links` surround what it does for a request. The chain is put together once."""

    json_provider_class = OrjsonProvider
    request_class = ServiceRequest

    def __init__(self, links: Sequence[Middleware] = ()) -> None:
        super().__init__("service", static_folder=None)
        # Two slashes are not found. Werkzeug would send the caller to the host that the request names.
        self.url_map.merge_slashes = False
        self._proceed = compose(links, super().full_dispatch_request)
        self._at_boot: list[Callable[[], object]] = []

    def at_boot(self, function: Callable[[], object]) -> None:
        """Have `function` called in each worker, before it serves anybody."""
        self._at_boot.append(function)

    def on_worker_booted(self) -> None:
        """A worker has been forked and has this application. The worker's hook calls it."""
        for function in self._at_boot:
            function()

    def full_dispatch_request(self) -> flask.Response:
        """Run the chain, innermost Flask's own dispatch."""
        # Before anything is bound: another server's worker may run every request of a connection in one context.
        structlog.contextvars.clear_contextvars()
        return self._proceed()

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        return metered(environ, super().wsgi_app(environ, start_response))


def create_app(settings: Settings, parts: Parts | None = None) -> Service:
    """The application that `settings` describe, out of `parts` or of those that the settings lead to.

    Raises `SettingsError` when the settings name something that there is not.
    """
    logs.configure(level=settings.log_level, style=settings.log_format)
    parts = parts or build_parts(settings)
    app = Service(build_chain(settings, authenticator=parts.authenticator, limiter=parts.limiter))
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit
    token = None if settings.resilience_admin_token is None else settings.resilience_admin_token.get_secret_value()
    Resilience(
        app,
        storage=parts.storage,
        state=parts.state,
        circuits=parts.circuits,
        limiters=(parts.limiter, parts.login_limiter, parts.guest_limiter),
        sources={name: Source(settings.origin(setting), setting.upper()) for name, setting in OPTIONS.items()},
        storage_timeout=settings.resilience_storage_timeout,
        storage_namespace=settings.resilience_storage_namespace,
        on_store_failure=settings.resilience_on_store_failure,
        workers=settings.web_concurrency or available_processors(),
        state_timeout=settings.resilience_state_timeout,
        trusted_proxies=settings.trusted_proxies,
        admin_token=token,
        admin_port=settings.admin_port,
        peer_directory=settings.peer_directory,
    )
    parts.lifecycle.on_shutdown("shared storages and peer socket", app.extensions["resilience"].close)
    problems.register(app)  # after the library, whose own handler is plainer
    app.register_blueprint(health.create_blueprint(parts.checks, parts.lifecycle))
    if token is not None:
        app.register_blueprint(create_admin_blueprint(name="admin", ends=lambda: parts.lifecycle.draining))
        app.register_blueprint(
            create_metrics_blueprint(
                lambda: metrics.render(BOARD) + render_metrics(app.extensions["resilience"]),
                media_type=metrics.CONTENT_TYPE,
                token_is_right=token_is_right,
                on_admin_listener=lambda: came_in_on_admin_listener(flask.request.environ, settings.admin_port),
            )
        )
    app.register_blueprint(create_auth_blueprint(parts.auth, parts.login_limiter))
    app.register_blueprint(
        create_backends_blueprint(
            Backends(parts.backends),
            body_limit=settings.backend_body_limit,
            stream_timeout=settings.backend_stream_timeout,
            trusted_proxies=settings.trusted_proxies,
        )
    )
    _add_channels(app, settings, parts)
    return app


def _add_channels(app: Service, settings: Settings, parts: Parts) -> None:
    """What stays connected: WebSockets, event streams, and who looks after them."""
    channels = ChannelService(parts.channels, message_limit=settings.message_limit, guests=parts.guest_limiter)
    credentials = Credentials(parts.tokens, parts.tickets, parts.users, trusted_proxies=settings.trusted_proxies)
    sockets = WebSockets(app, channels=parts.channels)
    sockets.endpoint(
        "/ws",
        endpoint="ws",
        message_bytes=settings.message_limit + AROUND_A_MESSAGE,
        messages_per_second=settings.message_rate,
        subprotocols=(SUBPROTOCOL,),
    )(ChannelSocket(channels, credentials, names_worker=settings.has_demo))
    public(app.view_functions["ws"])  # it looks at credentials wherever a browser can put them
    app.register_blueprint(create_tickets_blueprint(parts.tickets, parts.tokens, parts.users, guests=settings.has_demo))
    app.register_blueprint(
        create_channels_blueprint(channels, credentials, event_stream=event_stream, long_poll=long_poll)
    )
    roster = Roster(parts.channels)
    app.register_blueprint(
        create_users_blueprint(
            parts.users,
            on_removed=functools.partial(gevent.spawn, send_away, roster, "the user is gone"),
            on_role_changed=functools.partial(gevent.spawn, send_away, roster, "the role of the user has changed"),
        )
    )
    if settings.resilience_admin_token is not None:
        app.register_blueprint(create_connections_blueprint(roster, authorize=authorize, record=record))
    app.at_boot(functools.partial(_answer_for_connections, roster, parts))
    if settings.has_demo:
        app.register_blueprint(create_demo_blueprint())
        counters = LiveCounters(BOARD, parts.channels, clock=time.time, sleep=gevent.sleep)
        app.at_boot(functools.partial(gevent.spawn, counters.run))


def _answer_for_connections(roster: Roster, parts: Parts) -> None:
    """Have this worker tell of its connections, and close them, whichever worker is asked."""
    roster.answer()
    try:
        parts.channels.start()
    except LongConnError as error:
        # It serves everything else. The next who uses a channel tries again.
        _log.error("channels are out of order", reason=str(error))


def send_away(roster: Roster, reason: str, user_id: int, *, sleep: Callable[[float], object] = gevent.sleep) -> None:
    """Close the connections of a user who is gone, or is another than they were when they opened them, on every worker. Once
    more a little later: somebody may have been looked up just before, whose connection was not among them yet."""
    for wait in (0.0, HANDSHAKES_OVER):
        sleep(wait)
        with contextlib.suppress(ChannelsUnavailable):  # then nobody hears anything on them either
            roster.kick(user=user_name(user_id), reason=reason)
