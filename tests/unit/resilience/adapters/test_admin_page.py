"""The admin page keeps to the policy that it is served under, and to its own rules."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import resilience.adapters.admin
from resilience.core.breaker import STATES
from resilience.core.events import EVENT_TYPES, CallSucceeded

FOLDER = Path(resilience.adapters.admin.__file__).parent
PAGE = (FOLDER / "page.html").read_text(encoding="utf-8")
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
    addresses = {
        value for tag, given in Elements().found for name in ("src", "href", "action") if (value := given.get(name))
    }
    assert {"#circuits"} == {each for each in addresses if not each.startswith("data:")}
    assert [] == re.findall(r"https?://|url\(|@import", STYLE)
    assert [] == re.findall(r"""["'`]https?://""", SCRIPT)


def test_what_comes_from_the_server_never_becomes_markup_or_code() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|\.style\b"
    assert [] == re.findall(forbidden, SCRIPT)


def test_every_element_that_the_script_looks_for_is_in_the_page() -> None:
    ids = {given["id"] for _, given in Elements().found if "id" in given}
    assert set() == set(re.findall(r'\bfind\("([^"]+)"\)', SCRIPT)) - ids


def test_every_state_has_a_sign_and_a_colour() -> None:
    assert [] == [
        state for state in STATES if f'id="sign-{state}"' not in PAGE or f'[data-state="{state}"]' not in STYLE
    ]


def test_every_kind_of_event_has_a_sentence() -> None:
    told = {event.type for event in EVENT_TYPES if event is not CallSucceeded}
    assert set() == told - set(re.findall(r"^  ([A-Z_]+): \(e\) =>", SCRIPT, re.MULTILINE))
