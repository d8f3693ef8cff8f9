"""The admin page in a real browser, of applications that a service seldom is: with odd names, with very many policies."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, expect
from werkzeug.serving import make_server

from resilience import CircuitBreaker, RateLimiter, Resilience, create_admin_blueprint
from resilience.registry import PROCESS_REGISTRY
from tests.support.browser import CHROMIUM, NO_CHROMIUM, launched_browser, unnamed_controls

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)

TOKEN = "a-token-that-nobody-guesses"
PATIENCE = 15_000  # milliseconds, for a slow machine
ODD = (
    "two words",
    " space ",
    "<b>bold</b> & 'quoted\"",
    "é ✓",
    "list",
    "template",
    "a/b/open",
    "x//y",
    "tail/",
    "%2e%2e",
)


@pytest.fixture(autouse=True)
def _nothing_else_is_listed() -> None:
    """What decorators of other tests have entered is on the page of every application of the process."""
    PROCESS_REGISTRY.clear()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched_browser() as browser:
        yield browser


@contextmanager
def opened_page(browser: Browser, app: Flask) -> Iterator[Page]:
    """The page of `app`, signed in and with something to show. What its console has to complain about is an error."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        page.goto(f"http://127.0.0.1:{server.port}/admin/")
        page.get_by_label("Admin token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#circuit-list > li").first).to_be_visible(timeout=PATIENCE)
        yield page
        assert [] == complaints
    finally:
        context.close()
        app.extensions["resilience"].close()
        server.shutdown()
        thread.join()
        server.server_close()


def application(circuits: list[CircuitBreaker], limiters: list[RateLimiter]) -> Flask:
    app = Flask("paged")
    Resilience(app, circuits=circuits, limiters=limiters, admin_token=TOKEN)
    app.register_blueprint(create_admin_blueprint())
    return app


def test_circuits_of_any_name_have_it_for_a_screen_reader_and_are_moved_by_it(browser: Browser) -> None:
    circuits = [CircuitBreaker(name=name) for name in ODD]
    with opened_page(browser, application(circuits, [])) as page:
        assert [] == unnamed_controls(page)
        for circuit in circuits:
            name = str(circuit.name)
            card = page.get_by_role("listitem", name=name.strip(), exact=True)
            card.get_by_role("button", name=f"Disable {name}".strip(), exact=True).click()
            page.locator("#order-confirm").click()
            expect(card.locator(".word")).to_have_text("disabled", timeout=PATIENCE)
            assert "disabled" == circuit.snapshot().state


def test_of_very_many_those_that_are_not_closed_are_drawn_and_a_name_finds_any_other(browser: Browser) -> None:
    circuits = [CircuitBreaker(name=f"circuit-{number:03}") for number in range(250)]
    limiters = [RateLimiter("5/second", name=f"limiter-{number:03}", key="all") for number in range(250)]
    circuits[249].open()
    limiters[249].override("9/second", expires_in=60)
    with opened_page(browser, application(circuits, limiters)) as page:
        cards, rows = page.locator("#circuit-list > li"), page.locator("#limiter-list > tr")
        last, opened = cards.filter(has_text="circuit-198"), cards.filter(has_text="circuit-249")
        assert (200, 200) == (cards.count(), rows.count())
        expect(opened.locator(".word")).to_have_text("open")
        expect(rows.filter(has_text="limiter-249")).to_contain_text("instead of")
        expect(last).to_be_visible()
        expect(cards.filter(has_text="circuit-199")).to_be_hidden()
        expect(page.locator("#circuits-note")).to_contain_text("200 of 250 are shown here")

        page.get_by_label("Name contains", exact=True).fill("circuit-24")
        page.get_by_label("Limiter name contains").fill("limiter-248")
        assert (10, 1) == (cards.count(), rows.count())
        expect(page.locator("#circuits-note")).to_be_empty()
        page.get_by_label("Name contains", exact=True).fill("nothing")
        expect(page.locator("#circuits-note")).to_have_text("None of 250 is like that.")
        page.get_by_label("Name contains", exact=True).fill("")

        # Whoever is about to press a button keeps it, though others come before it now.
        button = last.locator("[data-order=open]")
        button.focus()
        for circuit in circuits[200:]:
            circuit.open()
        expect(cards.filter(has_text="circuit-200").locator(".word")).to_have_text("open", timeout=PATIENCE)
        expect(page.locator("#announcements")).to_contain_text("more have moved", timeout=PATIENCE)
        expect(button).to_be_focused()
        assert 200 == cards.count()


def test_lists_that_a_reload_empties_say_so(browser: Browser) -> None:
    with opened_page(browser, application([CircuitBreaker(name="a")], [])) as page:
        for shown in (page.get_by_role("log", name="Events"), page.get_by_role("list", name="Who did what")):
            note = page.locator(f"#{shown.get_attribute('aria-describedby')}")
            expect(note).to_contain_text("a reload or restart empties this list")


def test_what_was_called_before_the_page_was_opened_is_not_said_to_be_nothing(browser: Browser) -> None:
    called = CircuitBreaker(name="called")
    called.call(str)
    limiter = RateLimiter("5/second", name="counted", key="all")
    with opened_page(browser, application([called], [limiter])) as page:
        card = page.locator("#circuit-list > li")
        expect(card.locator(".peak")).to_have_text(re.compile(r"^no calls yet, watched for \d+ s$"))
        expect(card.get_by_role("img")).to_have_attribute(
            "aria-label", re.compile(r"^Calls of the \d+ seconds? since this page looks: 0 succeeded")
        )
        called.call(str)
        expect(card.locator(".peak")).to_have_text(re.compile(r"^peak 1/s, watched for \d+ s$"), timeout=PATIENCE)


def test_whoever_opens_a_circuit_without_saying_for_how_long_opens_it_for_ten_minutes(browser: Browser) -> None:
    circuit = CircuitBreaker(name="a")
    with opened_page(browser, application([circuit], [])) as page:
        expect(page.locator("#leave")).to_have_text("Sign out")  # nobody has said a name
        page.get_by_role("button", name="Open a", exact=True).click()
        expect(page.locator("#order-time")).to_have_value("600")
        page.locator("#order-confirm").click()
        expect(page.locator(".moment")).to_contain_text("over in", timeout=PATIENCE)
        page.get_by_role("button", name="Disable a", exact=True).click()
        expect(page.locator("#order-time")).to_have_value("")


def test_a_limit_is_said_as_people_say_it_and_other_ones_may_have_a_burst(browser: Browser) -> None:
    limiter = RateLimiter("10/hour", name="api", key="all")
    with opened_page(browser, application([CircuitBreaker(name="a")], [limiter])) as page:
        row = page.locator("#limiter-list > tr")
        expect(row.locator(".in-force")).to_have_text("10 per hour")
        row.get_by_role("button", name="Override api").click()
        page.get_by_label("Limits", exact=True).fill("20/minute")
        page.get_by_label("Calls at once").fill("40")
        page.locator("#order-confirm").click()
        expect(row.locator(".in-force")).to_have_text("20 per minute burst 40", timeout=PATIENCE)
        expect(row.locator(".override")).to_contain_text("instead of 10 per hour")


def test_settings_have_units_and_say_which_nobody_has_chosen(browser: Browser) -> None:
    circuit = CircuitBreaker(name="a", failure_rate=0.5, reset_timeout=7)
    with opened_page(browser, application([circuit], [])) as page:
        page.get_by_label("Workers and settings of a").first.click()
        settings = page.get_by_role("table", name="Settings of a")
        for name, said in (("failure rate", "50 %"), ("reset timeout", "7 s"), ("window calls", "100 calls (default)")):
            expect(settings.get_by_role("row", name=name, exact=False).first).to_contain_text(f"{name}{said}")
