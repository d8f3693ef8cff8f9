"""The admin page of a real service, in a real browser: a backend breaks, an operator decides, and it is written down."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import (
    CHROMIUM,
    NO_CHROMIUM,
    faint_texts,
    focused_names,
    launched_browser,
    unnamed_controls,
)
from tests.support.launched import Launched, launched, prepare_folder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)

VARIABLES = {"WEB_CONCURRENCY": "2", "BACKEND_FAIL_MAX": "3", "BACKEND_RESET_TIMEOUT": "60"}
PATIENCE = 15_000  # milliseconds, for a slow machine
REASON = "they say <b onclick='alert(1)'>it works</b> again"  # which is text, whatever it looks like


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    with launched(prepare_folder(tmp_path_factory.mktemp("page")), VARIABLES) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def page(run: Launched, browser: Browser) -> Iterator[Page]:
    """The page, nobody signed in. What its console has to complain about fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"http://127.0.0.1:{run.admin_port}/admin/")
    yield page
    context.close()
    # The browser itself tells of every answer that is no success, which some of these are on purpose.
    assert [] == [text for text in complaints if not text.startswith("Failed to load resource")]


def sign_in(page: Page, token: str, name: str = "") -> None:
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def signed_in(page: Page, run: Launched, name: str = "anna") -> None:
    sign_in(page, run.value("admin token"), name)
    expect(page.get_by_role("heading", name="demo")).to_be_visible(timeout=PATIENCE)


def state_of(page: Page, name: str) -> str:
    return page.get_by_role("listitem", name=name).locator(".word").inner_text()


def break_demo(run: Launched, calls: int = 40) -> list[int]:
    assert 200 == run.ask("POST", "/settings?failure_rate=1", port=run.demo_port).status
    return call_demo(run, calls)


def call_demo(run: Launched, calls: int) -> list[int]:
    headers = run.sign_in()
    return [run.ask("GET", "/api/v1/backends/demo/hello", headers=headers).status for _ in range(calls)]


def test_a_wrong_token_is_refused_and_says_so(run: Launched, page: Page) -> None:
    sign_in(page, "not-the-token")

    expect(page.get_by_role("alert").first).to_contain_text("token", timeout=PATIENCE)
    expect(page.get_by_role("heading", name="Circuits", exact=True)).to_be_hidden()
    assert [] == page.context.cookies()


def test_the_token_becomes_a_cookie_that_no_script_and_no_other_site_can_use(run: Launched, page: Page) -> None:
    signed_in(page, run)

    (cookie,) = page.context.cookies()
    assert (True, "Strict") == (cookie["httpOnly"], cookie["sameSite"])
    assert run.value("admin token") not in page.content() + cookie["value"]
    page.reload()
    expect(page.get_by_role("heading", name="demo")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin token")).to_be_visible()
    assert [] == page.context.cookies()


def test_a_backend_that_breaks_turns_its_circuit_and_an_operator_forces_it_closed(run: Launched, page: Page) -> None:
    signed_in(page, run)
    card = page.get_by_role("listitem", name="demo")
    expect(page.get_by_role("status").first).to_have_text("Live", timeout=PATIENCE)
    assert {200} == set(call_demo(run, 10))

    statuses = break_demo(run)

    opened = statuses.index(503)
    assert ({500}, {503}) == (set(statuses[:opened]), set(statuses[opened:]))  # whichever worker is asked
    expect(card.locator(".word")).to_have_text("open", timeout=PATIENCE)
    expect(card.locator(".moment")).to_contain_text(re.compile(r"next probe in (1 min )?\d+ s"))
    expect(page.locator("#announcements")).to_contain_text("demo is open")
    expect(page.get_by_role("log")).to_contain_text("closed to open", timeout=PATIENCE)
    expect(card.get_by_role("img")).to_have_attribute("aria-label", re.compile(r"[1-9]\d* refused"), timeout=PATIENCE)

    # With the keyboard alone.
    card.get_by_role("button", name="Close demo").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type(REASON)
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_label("For how long")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.get_by_label("Reason").press("Enter")

    expect(card.locator(".word")).to_have_text("forced-closed", timeout=PATIENCE)
    expect(card.locator(".said")).to_contain_text(REASON)
    expect(card.locator(".moment")).to_contain_text("over in")
    expect(card.get_by_role("button", name="Close demo")).to_be_focused()
    entry = page.locator("#audit-list li").first
    expect(entry).to_contain_text("close circuit demo, for 10 min", timeout=PATIENCE)
    expect(entry).to_contain_text(REASON)
    expect(entry).to_contain_text("anna (127.0.0.1)")
    assert {500} == set(call_demo(run, 10))  # they reach the backend, however it fares

    run.ask("POST", "/settings?failure_rate=0", port=run.demo_port)
    card.get_by_role("button", name="Reset demo").click()
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(card.locator(".word")).to_have_text("closed", timeout=PATIENCE)
    assert {200} == set(call_demo(run, 5))


def test_limits_are_overridden_for_a_time_and_restored(run: Launched, page: Page) -> None:
    signed_in(page, run)
    row = page.get_by_role("row", name="login")

    row.get_by_role("button", name="Override login").click()
    page.get_by_label("Limits", exact=True).fill("a lot")
    page.get_by_role("button", name="Override", exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("alert")).not_to_be_empty(timeout=PATIENCE)

    page.get_by_label("Limits", exact=True).fill("77/minute")
    page.get_by_role("button", name="Override", exact=True).click()
    expect(row).to_contain_text("77", timeout=PATIENCE)
    expect(row).to_contain_text("over in 9 min")
    told = page.get_by_role("log").get_by_role("listitem").filter(has_text="77/minute instead by anna")
    expect(told.locator(".where")).to_have_text(re.compile(r"^\S+ \d+, \S+ \d+$"), timeout=PATIENCE)
    expect(told).to_have_count(1)  # for both workers

    row.get_by_role("button", name="Restore login").click()
    page.get_by_role("button", name="Restore", exact=True).click()
    expect(row).not_to_contain_text("instead of", timeout=PATIENCE)
    told = page.get_by_role("log").get_by_role("listitem").filter(has_text="its own limits again")
    expect(told.locator(".where")).to_have_text(re.compile(r"^\S+ \d+, \S+ \d+$"), timeout=PATIENCE)
    expect(told).to_contain_text("by anna")


def test_without_a_stream_the_page_asks_by_itself(run: Launched, page: Page) -> None:
    page.route(re.compile(r"/events\?snapshots"), lambda route: route.fulfill(status=503))
    signed_in(page, run)

    expect(page.get_by_role("status").first).to_have_text("Asking every 2 s", timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {run.value('admin token')}"}
    run.ask("POST", "/admin/circuits/demo/disable", headers=headers, port=run.admin_port)
    expect(page.get_by_role("listitem", name="demo").locator(".word")).to_have_text("disabled", timeout=PATIENCE)
    run.ask("POST", "/admin/circuits/demo/reset", headers=headers, port=run.admin_port)


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(run: Launched, page: Page, colours: str) -> None:
    assert ([], []) == (unnamed_controls(page), faint_texts(page))
    signed_in(page, run)
    page.get_by_label("Colours").select_option(colours)
    page.get_by_label("Workers and settings of demo").first.click()
    expect(page.get_by_role("table", name="Workers of demo")).to_be_visible(timeout=PATIENCE)
    for state in ("open", "half-open", "forced-open", "forced-closed", "disabled", "metrics-only", "closed"):
        page.get_by_role("listitem", name="demo").evaluate(
            "(card, state) => [card, card.querySelector('.state')].forEach((each) => each.dataset.state = state)", state
        )
        assert (state, []) == (state, faint_texts(page))
    page.get_by_role("button", name="Open demo", exact=True).click()
    assert ([], []) == (unnamed_controls(page), faint_texts(page))
    assert "en" == page.locator("html").get_attribute("lang")


def test_the_tab_key_goes_through_the_page_in_its_order(run: Launched, page: Page) -> None:
    signed_in(page, run)
    page.reload()
    expect(page.get_by_role("heading", name="demo")).to_be_visible(timeout=PATIENCE)

    names = focused_names(page, 12)

    assert ["Skip to the circuits", "Sign out anna", "Open demo", "Close demo", "Half-open demo", "Disable demo"] == [
        name
        for name in names
        if name.endswith(("circuits", "anna", "demo")) and not name.startswith(("Metrics", "Reset"))
    ][:6]
    page.get_by_role("button", name="Open demo", exact=True).press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Open demo", exact=True)).to_be_focused()


def test_whoever_guesses_tokens_is_made_to_wait(page: Page) -> None:
    # Last: it is the address that has to wait, which is everybody's here.
    problem = page.get_by_role("alert").first
    for guess in range(7):
        sign_in(page, f"guess {guess}")
        expect(page.get_by_role("button", name="Sign in")).to_be_enabled()
    expect(problem).to_contain_text(re.compile(r"[Tt]ry again in \d+ s"), timeout=PATIENCE)
