"""The login of the admin page: a cookie that no script and no other site can use, and no way to guess the token."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from resilience import Decision, MemoryStorage, StorageUnavailable
from resilience.adapters.admin.access import CSRF_FIELD
from resilience.adapters.sessions import LIFETIME
from resilience.core.limiter import Charge
from resilience.registry import PROCESS_REGISTRY
from resilience.storage.standin import StandInStorage
from resilience.testing import FakeClock
from tests.support.operating import TOKEN, Operated

OPEN = "/admin/circuits/pay/ments/open"
HERE = {"Origin": "http://localhost"}


@pytest.fixture
def call() -> Iterator[Operated]:
    PROCESS_REGISTRY.clear()
    yield Operated()
    PROCESS_REGISTRY.clear()


def login(call: Operated, **body: Any) -> Any:
    return call("POST", "/admin/login", {"token": TOKEN, **body}, token=None)


def order(call: Operated, csrf: str | None, headers: dict[str, str] = HERE) -> int:
    field = {} if csrf is None else {CSRF_FIELD: csrf}
    return int(call("POST", OPEN, {}, token=None, headers={**headers, **field}).status_code)


def test_a_login_makes_a_cookie_that_lets_its_browser_in(call: Operated) -> None:
    answer = login(call, name="anna")
    assert (200, "anna") == (answer.status_code, answer.get_json()["author"])
    assert LIFETIME - 5 < answer.get_json()["expires_in"] <= LIFETIME
    assert 200 == call("GET", "/admin/circuits", token=None).status_code
    session = call("GET", "/admin/session", token=None).get_json()
    assert ("anna", answer.get_json()["csrf"]) == (session["author"], session["csrf"])


def test_the_cookie_is_kept_from_scripts_other_sites_and_other_paths(call: Operated) -> None:
    said = login(call).headers["Set-Cookie"]
    flags = {part.strip() for part in said.split(";")[1:]}
    assert {"HttpOnly", "SameSite=Strict", "Path=/admin", "Max-Age=43200"} <= flags
    assert TOKEN not in said
    assert "Secure" not in flags
    secure = call.client.post("/admin/login", json={"token": TOKEN}, base_url="https://localhost")
    assert "Secure" in secure.headers["Set-Cookie"]


def test_with_the_cookie_a_change_needs_the_word_of_the_page(call: Operated) -> None:
    csrf = login(call).get_json()["csrf"]
    assert [403, 403, 200] == [order(call, given) for given in (None, "wrong", csrf)]
    assert ("forced-open", "page (127.0.0.1)") == (call.circuit.snapshot().state, call.circuit.snapshot().author)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "HTTP://LOCALHOST"}, 200),
        ({"Origin": "https://localhost", "Sec-Fetch-Site": "same-origin"}, 200),  # a proxy ends TLS
        ({"Origin": "https://localhost"}, 403),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:8001"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
    ],
)
def test_with_the_cookie_a_change_comes_from_a_page_of_this_host(
    call: Operated, headers: dict[str, str], status: int
) -> None:
    assert status == order(call, login(call).get_json()["csrf"], headers)


def test_the_token_needs_no_word_of_a_page_and_goes_before_a_cookie(call: Operated) -> None:
    login(call, name="anna")
    headers = {"X-Resilience-Author": "bert"}
    assert 200 == call("POST", OPEN, {}, headers=headers).status_code
    assert "bert (127.0.0.1)" == call.circuit.snapshot().author
    assert 401 == call("GET", "/admin/circuits", token="wrong").status_code
    assert 400 == call("GET", "/admin/circuits", headers={"X-Resilience-Author": "b" * 65}).status_code


@pytest.mark.parametrize("said", ["UTF-8''J%C3%BCrgen%20%E2%9C%93", "utf-8''J%c3%bcrgen ✓", "Jürgen ✓"])
def test_a_name_beyond_ascii_may_be_percent_encoded_or_utf_8(call: Operated, said: str) -> None:
    headers = {"X-Resilience-Author": said.encode().decode("latin-1")}  # as WSGI has it
    assert 200 == call("POST", OPEN, {}, headers=headers).status_code
    assert "Jürgen ✓ (127.0.0.1)" == call.circuit.snapshot().author


@pytest.mark.parametrize("said", ["UTF-8''J%FCrgen", "J\xfcrgen", "UTF-8''a%0Ab"])
def test_a_name_that_is_no_text_is_refused(call: Operated, said: str) -> None:
    assert 400 == call("POST", OPEN, {}, headers={"X-Resilience-Author": said}).status_code
    assert "closed" == call.circuit.current_state


def test_another_site_cannot_log_a_browser_in(call: Operated) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert 403 == call("POST", "/admin/login", {"token": TOKEN}, token=None, headers=headers).status_code
    form = call.client.post("/admin/login", data={"token": TOKEN})
    assert 415 == form.status_code


@pytest.mark.parametrize("body", [{}, {"token": None}, {"token": 7}, [], "token", {"token": TOKEN, "name": "a\nb"}])
def test_a_login_that_makes_no_sense_is_refused(call: Operated, body: Any) -> None:
    answer = call("POST", "/admin/login", body, token=None)
    assert 400 == answer.status_code
    assert "Set-Cookie" not in answer.headers


def test_after_a_logout_the_cookie_opens_nothing(call: Operated) -> None:
    csrf = login(call, name="anna").get_json()["csrf"]
    cookie = call.client.get_cookie("resilience_admin", path="/admin")
    assert cookie is not None
    answer = call("POST", "/admin/logout", token=None, headers={**HERE, CSRF_FIELD: csrf})
    assert 200 == answer.status_code
    assert call.client.get_cookie("resilience_admin", path="/admin") is None
    call.client.set_cookie("resilience_admin", cookie.value, path="/admin")
    assert 401 == call("GET", "/admin/circuits", token=None).status_code


def test_a_logout_needs_the_word_of_the_page_too(call: Operated) -> None:
    login(call)
    assert 403 == call("POST", "/admin/logout", token=None, headers=HERE).status_code
    assert 200 == call("GET", "/admin/session", token=None).status_code


def test_a_cookie_that_was_made_up_opens_nothing(call: Operated) -> None:
    for text in ("", "a.9999999999.b.c", "x" * 3_000):
        call.client.set_cookie("resilience_admin", text, path="/admin")
        assert 401 == call("GET", "/admin/circuits", token=None).status_code


def test_after_five_wrong_tokens_an_address_waits(call: Operated) -> None:
    guesses = [login(call, token=f"guess {number}").status_code for number in range(7)]
    assert [401] * 5 + [429] * 2 == guesses
    right = login(call)
    assert (429, "12") == (right.status_code, right.headers["Retry-After"]), "or guessing would be worth while"
    call.clock.advance(12)
    assert 200 == login(call).status_code


def test_wrong_tokens_in_the_field_count_too_and_the_right_one_waits_then(call: Operated) -> None:
    statuses = [call("GET", "/admin/circuits", token=f"guess {number}").status_code for number in range(7)]
    assert [401] * 5 + [429] * 2 == statuses
    right = call("GET", "/admin/circuits")
    assert (429, "12") == (right.status_code, right.headers["Retry-After"])
    assert 429 == login(call).status_code
    assert 401 == call("GET", "/admin/circuits", token=None).status_code, "who shows no token guesses nothing"


def test_wrong_tokens_in_the_field_are_in_the_audit_log(call: Operated) -> None:
    for _ in range(3):
        call("GET", "/admin/circuits", token="guess", headers={"X-Resilience-Author": "anna"})
    entries = call("GET", "/admin/audit").get_json()["entries"]
    assert [("token", "refused", "somebody (127.0.0.1)")] == [
        (entry["action"], entry["outcome"], entry["author"]) for entry in entries
    ]


@pytest.mark.parametrize("name", ["anna (10.0.0.7)", "anna )", "anna （10.0.0.7）"])
def test_a_name_cannot_imitate_an_address(call: Operated, name: str) -> None:
    answer = login(call, name=name)
    assert (400, True) == (answer.status_code, "leave the parentheses out" in answer.get_json()["detail"])
    field = {"X-Resilience-Author": f"UTF-8''{quote(name)}"}
    assert 400 == call("GET", "/admin/circuits", headers=field).status_code


def test_what_nobody_means_is_refused_and_no_fault(call: Operated) -> None:
    for body, status in (('{"token": "\\ud800"}', 401), ("[" * 16_000, 400)):
        assert status == call.client.post("/admin/login", data=body, content_type="application/json").status_code
    assert 403 == call("POST", "/admin/login", {"token": TOKEN}, token=None, headers={"Origin": "http://["}).status_code


def test_what_a_page_must_show_is_no_cookie(call: Operated) -> None:
    csrf = login(call).get_json()["csrf"]
    cookie = call.client.get_cookie("resilience_admin", path="/admin")
    assert cookie is not None
    call.client.set_cookie("resilience_admin", f"csrf.{cookie.value.partition('.')[0]}.{csrf}", path="/admin")
    assert 401 == call("GET", "/admin/circuits", token=None).status_code


def test_right_tokens_do_not_use_the_attempts_up(call: Operated) -> None:
    assert [200] * 10 == [login(call).status_code for _ in range(10)]


def test_what_a_client_claims_about_its_address_is_not_asked() -> None:
    call = Operated(trusted_proxies=1)
    claims = [{"X-Forwarded-For": f"192.0.2.{number}"} for number in range(6)]
    statuses = [call("GET", "/admin/circuits", token="guess", headers=claim).status_code for claim in claims]
    assert [401] * 5 + [429] == statuses


@pytest.mark.parametrize("options", [{"enabled": False}, {"shadow": True}])
def test_guesses_are_limited_also_where_limits_are_switched_off(options: dict[str, Any]) -> None:
    call = Operated(**options)
    assert 429 == [login(call, token="guess").status_code for _ in range(6)][-1]


def test_guesses_are_limited_also_while_the_storage_is_down() -> None:
    class Gone(MemoryStorage):
        def take(self, charges: Sequence[Charge]) -> Decision:
            raise StorageUnavailable("gone")

    call = Operated(storage=StandInStorage(Gone(), on_store_failure="deny", clock=FakeClock(), probing=False))
    assert [401] * 5 + [429] == [login(call, token="guess").status_code for _ in range(6)]


def test_guesses_are_limited_also_where_the_storage_has_no_stand_in() -> None:
    class Gone(MemoryStorage):
        def take(self, charges: Sequence[Charge]) -> Decision:
            raise StorageUnavailable("gone")

        give_back = take  # type: ignore[assignment]

    call = Operated(storage=Gone())
    assert 200 == login(call).status_code
    assert [401] * 5 + [429] == [login(call, token="guess").status_code for _ in range(6)]


def test_logins_are_in_the_audit_log(call: Operated) -> None:
    login(call, token="guess", name="eve")
    login(call, name="anna")
    entries = call("GET", "/admin/audit").get_json()["entries"]
    assert [("login", "done", "anna (127.0.0.1)"), ("login", "refused", "eve (127.0.0.1)")] == [
        (entry["action"], entry["outcome"], entry["author"]) for entry in entries
    ]
    assert all("guess" not in str(entry) for entry in entries)


def test_the_page_is_there_for_everybody_and_tells_nothing(call: Operated) -> None:
    answer = call("GET", "/admin/", token=None)
    assert (200, "text/html; charset=utf-8") == (answer.status_code, answer.content_type)
    assert "pay/ments" not in answer.get_data(as_text=True)
    again = call("GET", "/admin/", token=None, headers={"If-None-Match": answer.headers["ETag"]})
    assert 304 == again.status_code
    assert [401, 405] == [call("POST", "/admin/", token=token).status_code for token in (None, TOKEN)]


def test_nothing_but_the_page_s_own_script_runs_in_it(call: Operated) -> None:
    answer = call("GET", "/admin/", token=None)
    text, policy = answer.get_data(as_text=True), answer.headers["Content-Security-Policy"].split("; ")
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        (own,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
    assert [] == [word for word in ("style=", "onclick", 'src="http', 'href="http') if word in text]


def test_the_address_without_a_slash_leads_to_the_page(call: Operated) -> None:
    answer = call("GET", "/admin", token=None)
    assert (308, "admin/") == (answer.status_code, answer.headers["Location"])


def test_elsewhere_the_cookie_is_for_where_the_endpoint_is() -> None:
    call = Operated(blueprint={"name": "ops", "url_prefix": "/internal/ops"})
    answer = call("POST", "/internal/ops/login", {"token": TOKEN}, token=None)
    assert "Path=/internal/ops;" in answer.headers["Set-Cookie"]
    assert 200 == call("GET", "/internal/ops/circuits", token=None).status_code


def test_a_session_that_was_ended_is_over_for_workers_that_begin_later(tmp_path: Path) -> None:
    shared = f"shm://{tmp_path}/state"
    call = Operated(state_uri=shared)
    csrf = login(call).get_json()["csrf"]
    cookie = call.client.get_cookie("resilience_admin", path="/admin")
    assert cookie is not None
    PROCESS_REGISTRY.clear()
    later = Operated(state_uri=shared)
    later.client.set_cookie("resilience_admin", cookie.value, path="/admin")
    assert 200 == later("GET", "/admin/circuits", token=None).status_code
    assert 200 == call("POST", "/admin/logout", token=None, headers={**HERE, CSRF_FIELD: csrf}).status_code
    assert 401 == later("GET", "/admin/circuits", token=None).status_code
    for each in (call, later):
        each.application.close()


def test_a_logout_that_workers_to_come_will_not_hear_of_says_so_in_the_audit_log(tmp_path: Path) -> None:
    call = Operated(state_uri=f"shm://{tmp_path}/state")
    csrf = login(call).get_json()["csrf"]
    call.application.state.update = _unavailable  # type: ignore[method-assign]
    assert 200 == call("POST", "/admin/logout", token=None, headers={**HERE, CSRF_FIELD: csrf}).status_code
    newest = call("GET", "/admin/audit").get_json()["entries"][0]
    assert ("logout", "not kept for workers that begin later") == (newest["action"], newest["detail"])
    call.application.close()


def _unavailable(*_: Any, **__: Any) -> Any:
    raise StorageUnavailable("gone")
