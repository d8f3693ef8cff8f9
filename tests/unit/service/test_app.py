from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flask
import pytest
from structlog.testing import capture_logs

from longconn.channels.errors import ChannelsUnavailable
from resilience import open_storage
from resilience.storage.state_address import open_state_storage
from service import wiring
from service.app import Service, create_app, send_away
from service.lifecycle import Lifecycle
from service.routes.access import public
from service.services.channels import DEMO
from service.settings import Settings, SettingsError
from service.wiring import build_parts
from tests.support.database import settings_for
from tests.support.edge import serve

ADMIN_TOKEN = "testing-only-token-of-the-administrator"


@pytest.fixture
def lifecycle() -> Iterator[Lifecycle]:
    lifecycle = Lifecycle()
    yield lifecycle
    lifecycle.shut_down()


def create(tmp_path: Path, lifecycle: Lifecycle, **values: Any) -> Service:
    settings = settings_for(f"sqlite:///{tmp_path / 'service.db'}", **values)
    return create_app(settings, build_parts(settings, lifecycle=lifecycle))


def test_every_api_view_but_signing_in_needs_a_token(tmp_path: Path, lifecycle: Lifecycle) -> None:
    app = create(tmp_path, lifecycle)
    views = {rule.endpoint for rule in app.url_map.iter_rules() if rule.rule.startswith("/api/")}
    open_views = {view for view in views if getattr(app.view_functions[view], "is_public", False)}
    assert {"auth.issue_token"} == open_views
    assert len(views) > 5


def test_the_surface_is_the_api_the_admin_endpoint_and_health(tmp_path: Path, lifecycle: Lifecycle) -> None:
    app = create(tmp_path, lifecycle, resilience_admin_token=ADMIN_TOKEN)
    rules = {rule.rule for rule in app.url_map.iter_rules()}
    assert {"/livez", "/readyz", "/healthz", "/metrics", "/admin/circuits", "/admin/connections"} <= rules
    known = ("/api/v1/", "/admin", "/events/", "/livez", "/readyz", "/healthz", "/metrics")
    assert {"/", "/ws"} == {rule for rule in rules if not rule.startswith(known)}


@pytest.mark.parametrize(("demo", "there"), [(None, True), (False, False)])
def test_the_demo_and_its_guests_are_there_where_the_settings_say_so(
    tmp_path: Path, lifecycle: Lifecycle, demo: bool | None, there: bool
) -> None:
    client = create(tmp_path, lifecycle, demo_page=demo).test_client()
    statuses = client.get("/").status_code, client.post("/api/v1/tickets").status_code
    assert ((200, 201) if there else (404, 401)) == statuses


def test_connections_that_stay_need_credentials(tmp_path: Path, lifecycle: Lifecycle) -> None:
    client = create(tmp_path, lifecycle).test_client()
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    worker = {"longconn.upgrade": lambda *_: None}
    answer = client.get("/ws", headers=handshake, environ_overrides=worker)
    assert (401, 10003) == (answer.status_code, answer.get_json()["code"])
    assert 401 == client.get("/events/live").status_code


def test_what_is_no_websocket_is_told_what_to_do(tmp_path: Path, lifecycle: Lifecycle) -> None:
    answer = create(tmp_path, lifecycle).test_client().get("/ws")
    assert (426, "websocket") == (answer.status_code, answer.headers["Upgrade"])
    assert 426 == answer.get_json()["status"]


def test_pages_of_other_origins_open_no_websocket(tmp_path: Path, lifecycle: Lifecycle) -> None:
    client = create(tmp_path, lifecycle).test_client()
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Origin": "https://evil.example",
    }
    answer = client.get("/ws", headers=handshake, environ_overrides={"longconn.upgrade": lambda *_: None})
    assert (403, 10004) == (answer.status_code, answer.get_json()["code"])


def test_the_connections_are_on_the_admin_listener_for_whoever_has_the_token(
    tmp_path: Path, lifecycle: Lifecycle
) -> None:
    admin, headers = {"SERVER_PORT": "8001"}, {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    client = create(tmp_path, lifecycle, resilience_admin_token=ADMIN_TOKEN).test_client()
    statuses = [
        client.get("/admin/connections", headers=given, environ_overrides=listener).status_code
        for given, listener in (({}, admin), (headers, {}))
    ]
    assert [401, 404] == statuses
    assert 401 == client.post("/admin/connections/kick", json={"user": "a"}, environ_overrides=admin).status_code


def test_the_admin_endpoint_needs_a_token_to_exist(tmp_path: Path, lifecycle: Lifecycle) -> None:
    overrides = {"SERVER_PORT": "8001"}
    without = create(tmp_path, lifecycle).test_client()
    assert 404 == without.get("/admin/circuits", environ_overrides=overrides).status_code
    with_token = create(tmp_path, lifecycle, resilience_admin_token=ADMIN_TOKEN).test_client()
    assert 401 == with_token.get("/admin/circuits", environ_overrides=overrides).status_code
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    assert 200 == with_token.get("/admin/circuits", headers=headers, environ_overrides=overrides).status_code


def test_metrics_are_on_the_admin_listener_for_whoever_has_the_token(tmp_path: Path, lifecycle: Lifecycle) -> None:
    admin, headers = {"SERVER_PORT": "8001"}, {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    without = create(tmp_path, lifecycle).test_client()
    assert 404 == without.get("/metrics", headers=headers, environ_overrides=admin).status_code
    client = create(
        tmp_path, lifecycle, resilience_admin_token=ADMIN_TOKEN, rate_limit="1/hour", rate_limit_burst=1
    ).test_client()
    assert 401 == client.get("/metrics", environ_overrides=admin).status_code
    answers = [client.get("/metrics", headers=headers, environ_overrides=admin) for _ in range(3)]
    assert [200] * 3 == [answer.status_code for answer in answers]
    assert b"longconn_requests_total" in answers[0].data
    assert b'resilience_limit_decisions_total{limiter="login",outcome="denied",' in answers[0].data
    assert 404 == client.get("/metrics", headers=headers).status_code


def test_wrong_tokens_for_the_metrics_run_out_with_those_for_the_admin_endpoint(
    tmp_path: Path, lifecycle: Lifecycle
) -> None:
    client = create(tmp_path, lifecycle, resilience_admin_token=ADMIN_TOKEN).test_client()

    def statuses(path: str, token: str, count: int) -> list[int]:
        headers = {"Authorization": f"Bearer {token}"}
        answers = [client.get(path, headers=headers, environ_overrides={"SERVER_PORT": "8001"}) for _ in range(count)]
        return [answer.status_code for answer in answers]

    assert [401] * 3 == statuses("/metrics", "guess", 3)
    assert [401] * 2 + [429] == statuses("/admin/circuits", "guess", 3)
    assert [429, 429] == statuses("/metrics", "guess", 1) + statuses("/metrics", ADMIN_TOKEN, 1)


def test_the_admin_endpoint_tells_what_the_service_has_read(
    tmp_path: Path, lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {
        "TOKEN_SECRET": "a-secret-of-tests-that-is-long-enough-to-sign",
        "RESILIENCE_ADMIN_TOKEN": ADMIN_TOKEN,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'service.db'}",
        "RESILIENCE_STATE_TIMEOUT": "0.4",
        "TRUSTED_PROXIES": "2",
    }
    (tmp_path / "development.yaml").write_text(
        "resilience_storage_uri: memory://\nresilience_state_uri: memory://\nresilience_storage_timeout: 0.3\n"
        "resilience_storage_namespace: mine\n"
    )
    monkeypatch.setenv("RESILIENCE_TRUSTED_PROXIES", "3")  # not a setting of the service: nobody reads it
    settings = Settings.load(environ, tmp_path)
    client = create_app(settings, build_parts(settings, lifecycle=lifecycle)).test_client()
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    answer = client.get("/admin/policies", headers=headers, environ_overrides={"SERVER_PORT": "8001"}).get_json()
    told = {name: (each["value"], each["origin"], each["key"]) for name, each in answer["options"].items()}
    assert ("memory://", "config", "RESILIENCE_STORAGE_URI") == told["storage_uri"]
    assert (0.3, "config", "RESILIENCE_STORAGE_TIMEOUT") == told["storage_timeout"]
    assert ("mine", "config", "RESILIENCE_STORAGE_NAMESPACE") == told["storage_namespace"]
    assert (0.4, "environment", "RESILIENCE_STATE_TIMEOUT") == told["state_timeout"]
    assert ("local", "default", "RESILIENCE_ON_STORE_FAILURE") == told["on_store_failure"]
    assert (2, "environment", "TRUSTED_PROXIES") == told["trusted_proxies"]
    assert ("set", "environment", "RESILIENCE_ADMIN_TOKEN") == told["admin_token"]


def test_the_storages_wait_as_long_and_are_named_as_the_settings_say(
    tmp_path: Path, lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[float, str]] = []

    def watching(open_it: Callable[..., Any]) -> Callable[..., Any]:
        def watched(uri: str, **options: Any) -> Any:
            opened.append((options["timeout"], options["namespace"]))
            return open_it(uri, **options)

        return watched

    monkeypatch.setattr(wiring, "open_storage", watching(open_storage))
    monkeypatch.setattr(wiring, "open_state_storage", watching(open_state_storage))
    settings = settings_for(
        f"sqlite:///{tmp_path / 'service.db'}",
        resilience_storage_uri="redis://127.0.0.1:1/0",
        resilience_state_uri="redis://127.0.0.1:1/0",
        resilience_storage_timeout=0.3,
        resilience_state_timeout=0.4,
        resilience_storage_namespace="mine",
    )
    build_parts(settings, lifecycle=lifecycle)
    assert [(0.3, "mine"), (0.4, "mine")] == opened


def test_metrics_stay_off_the_public_listener_without_the_middleware_too(tmp_path: Path, lifecycle: Lifecycle) -> None:
    client = create(tmp_path, lifecycle, resilience_admin_token=ADMIN_TOKEN, middleware_off=("listener",)).test_client()
    assert 404 == client.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).status_code


@pytest.mark.parametrize("path", ["/admin/circuits", "/metrics"])
def test_on_the_public_listener_the_admin_surface_looks_like_any_unknown_path(
    tmp_path: Path, lifecycle: Lifecycle, path: str
) -> None:
    client = create(tmp_path, lifecycle, resilience_admin_token=ADMIN_TOKEN).test_client()
    for method in ("GET", "POST", "OPTIONS"):
        hidden, unknown = (client.open(each, method=method) for each in (path, "/nothing"))
        assert hidden.status_code == unknown.status_code == 404
        assert list(unknown.headers.keys()) == list(hidden.headers.keys())


def test_an_unknown_middleware_is_refused(tmp_path: Path, lifecycle: Lifecycle) -> None:
    with pytest.raises(SettingsError, match="no middleware is named nonsense"):
        create(tmp_path, lifecycle, middleware_off=("nonsense",))


def test_a_storage_that_cannot_be_opened_is_refused_without_repeating_its_address(
    tmp_path: Path, lifecycle: Lifecycle
) -> None:
    with pytest.raises(SettingsError, match="resilience_storage_uri: must be memory://, shm://") as refusal:
        create(tmp_path, lifecycle, resilience_storage_uri="redis://user:secret@host/0?socket_timeout=long")
    assert "secret" not in str(refusal.value)


def test_a_storage_of_circuits_that_cannot_be_opened_is_refused_without_repeating_its_address(
    tmp_path: Path, lifecycle: Lifecycle
) -> None:
    with pytest.raises(SettingsError, match="resilience_state_uri: must be memory://, shm://") as refusal:
        create(tmp_path, lifecycle, resilience_state_uri="redis://user:secret@host/0?socket_timeout=long")
    assert "secret" not in str(refusal.value)


def test_each_configured_backend_has_a_circuit(tmp_path: Path, lifecycle: Lifecycle) -> None:
    backends = {"orders": "http://127.0.0.1:9/", "payments": "http://127.0.0.1:9/"}
    app = create(tmp_path, lifecycle, backends=backends, resilience_admin_token=ADMIN_TOKEN)
    answer = app.test_client().get(
        "/admin/circuits",
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
        environ_overrides={"SERVER_PORT": "8001"},
    )
    assert answer.json is not None
    assert ["orders", "payments"] == [circuit["name"] for circuit in answer.json["circuits"]]


def test_two_applications_do_not_share_their_limits(tmp_path: Path, lifecycle: Lifecycle) -> None:
    clients = [create(tmp_path, lifecycle, rate_limit="1/hour", rate_limit_burst=1).test_client() for _ in range(2)]
    assert [404, 404] == [client.get("/nothing").status_code for client in clients]
    assert [429, 429] == [client.get("/nothing").status_code for client in clients]


def test_what_was_opened_is_given_back_at_the_end(tmp_path: Path) -> None:
    lifecycle = Lifecycle()
    app = create(tmp_path, lifecycle, peer_directory=tmp_path / "peers")
    assert 1 == len(list((tmp_path / "peers").iterdir()))
    lifecycle.shut_down()
    assert [] == list((tmp_path / "peers").iterdir())
    assert app.extensions["resilience"].storage is not None


@pytest.mark.parametrize("size", [0, 999, 1000])
def test_a_body_up_to_the_limit_is_read_whole(size: int) -> None:
    assert (200, size) == post_chunked(b"x" * size)


@pytest.mark.parametrize("size", [1001, 100_000])
def test_a_body_of_unknown_length_beyond_the_limit_is_refused_and_not_cut(size: int) -> None:
    status, _ = post_chunked(b"x" * size)
    assert 413 == status


def post_chunked(body: bytes) -> tuple[int, int]:
    """Status and the length that the view saw, for a body that the server ends where it ends."""
    app = serve([], size=lambda: str(len(flask.request.get_data())))
    app.config["MAX_CONTENT_LENGTH"] = 1000
    environ = {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    response = app.test_client().post("/size", environ_overrides=environ)
    return response.status_code, int(response.text) if response.status_code == 200 else -1


def test_a_worker_without_channels_serves_everything_else(
    tmp_path: Path, lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign").touch()
    monkeypatch.setenv("LONGCONN_CHANNELS", str(tmp_path / "foreign"))
    app = create(tmp_path, lifecycle, demo_page=False)
    with capture_logs() as logged:
        app.on_worker_booted()
    assert ["channels are out of order"] == [line["event"] for line in logged]
    client = app.test_client()
    assert (200, 404) == (client.get("/livez").status_code, client.get("/").status_code)


def test_dates_and_dataclasses_are_json() -> None:
    @dataclasses.dataclass
    class Thing:
        name: str
        made: datetime

    thing = Thing("é", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    response = serve([], thing=lambda: flask.jsonify(thing)).test_client().get("/thing")
    assert {"name": "é", "made": "2026-01-02T03:04:05+00:00"} == response.json
    assert "application/json" == response.mimetype


def test_views_may_return_what_flask_allows() -> None:
    app = serve([], dictionary=lambda: {"a": 1}, listing=lambda: [1, 2], text=lambda: "é")
    client = app.test_client()
    assert ({"a": 1}, [1, 2], "é") == (
        client.get("/dictionary").json,
        client.get("/listing").json,
        client.get("/text").text,
    )


def test_json_keeps_the_order_of_its_members() -> None:
    response = serve([], thing=lambda: {"b": 1, "a": 2}).test_client().get("/thing")
    assert '{"b":1,"a":2}' == response.text


def test_a_public_view_is_one_that_says_so(tmp_path: Path, lifecycle: Lifecycle) -> None:
    app = create(tmp_path, lifecycle)
    app.add_url_rule("/open", "open", public(lambda: "hello"))
    app.add_url_rule("/closed", "closed", lambda: "hello")
    client = app.test_client()
    assert (200, 401) == (client.get("/open").status_code, client.get("/closed").status_code)


def test_nobody_is_redirected_to_a_host_that_the_caller_named() -> None:
    app = Service()
    app.add_url_rule("/a/b", view_func=lambda: "found")
    answer = app.test_client().get("/a//b", headers={"Host": "evil.example"})
    assert (404, None) == (answer.status_code, answer.headers.get("Location"))


def test_what_guests_say_fills_little_of_what_is_kept(tmp_path: Path, lifecycle: Lifecycle) -> None:
    settings = settings_for(f"sqlite:///{tmp_path / 'service.db'}")
    channels = build_parts(settings, lifecycle=lifecycle).channels
    kept = {name: channels.limits(name).size for name in (*DEMO, "orders")}
    assert kept == {**dict.fromkeys(DEMO, 262_144), "orders": 1_048_576}


def test_who_was_on_the_way_in_when_their_standing_changed_is_sent_away_too() -> None:
    done: list[object] = []

    class Connections:
        def kick(self, *, user: str, reason: str) -> None:
            done.append((user, reason))
            raise ChannelsUnavailable("full")

    roster: Any = Connections()
    send_away(roster, "the user is gone", 7, sleep=done.append)
    assert [0.0, ("user-7", "the user is gone"), 3.0, ("user-7", "the user is gone")] == done
