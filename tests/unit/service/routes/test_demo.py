"""The demo page keeps to the policy that it is served under, and to its own rules."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import service.routes
from service.routes.demo import create_demo_blueprint
from service.services.channels import DEMO, LIVE
from tests.support.routes import application

PAGE = (Path(service.routes.__file__).parent / "demo.html").read_text(encoding="utf-8")
(SCRIPT,) = re.findall("<script>(.*?)</script>", PAGE, re.DOTALL)
(STYLE,) = re.findall("<style>(.*?)</style>", PAGE, re.DOTALL)


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(PAGE)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_no_element_has_code_or_style_of_its_own() -> None:
    assert [] == [name for _, given in Elements().found for name in given if name == "style" or name.startswith("on")]


def test_it_is_one_file_that_loads_no_other() -> None:
    addresses = [
        value for _, given in Elements().found for name in ("src", "href", "action") if (value := given.get(name))
    ]
    assert [] == [each for each in addresses if not each.startswith("data:")]
    assert [] == re.findall(r"https?://|url\(|@import", STYLE)
    assert [] == re.findall(r"""["'`]https?://""", SCRIPT)


def test_what_comes_from_the_server_never_becomes_markup_or_code() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|\.style\b"
    assert [] == re.findall(forbidden, SCRIPT)


def test_every_element_that_the_script_looks_for_is_in_the_page() -> None:
    ids = {given["id"] for _, given in Elements().found if "id" in given}
    assert set() == set(re.findall(r'\bfind\("([^"]+)"\)', SCRIPT)) - ids


def test_it_uses_channels_that_guests_may_use() -> None:
    assert set(re.findall('const CHANNEL = "(.*)"', SCRIPT)) <= set(DEMO)
    assert f"events/{LIVE}?" in SCRIPT


def test_the_policy_allows_its_own_script_and_style_by_what_they_are() -> None:
    response = application(create_demo_blueprint()).test_client().get("/")
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (SCRIPT, STYLE)]
    assert (f"'sha256-{digests[0]}'", f"'sha256-{digests[1]}'") == (policy["script-src"], policy["style-src"])
    assert ("'none'", "'self'") == (policy["default-src"], policy["connect-src"])
    assert "text/html; charset=utf-8" == response.content_type


def test_a_page_that_is_still_the_same_is_not_sent_again() -> None:
    client = application(create_demo_blueprint()).test_client()
    first = client.get("/")
    assert 304 == client.get("/", headers={"If-None-Match": first.headers["ETag"]}).status_code
