"""The demo page of a real service, in a real browser: two visitors talk, one is cut off, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

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

PATIENCE = 15_000  # milliseconds, for a slow machine
MARKUP = "<b onclick='alert(1)'>bold</b>"  # which is text, whatever it looks like


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    with launched(
        prepare_folder(tmp_path_factory.mktemp("demo")), {"WEB_CONCURRENCY": "2", "GRACEFUL_TIMEOUT": "4"}
    ) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the pages' consoles have to complain about, which fails the test."""
    complaints: list[str] = []
    yield complaints
    # The browser itself tells of every connection that it does not get, which some of these tests want.
    assert [] == [text for text in complaints if not re.search("Failed to load resource|WebSocket connection to", text)]


def visit(run: Launched, browser: Browser, complaints: list[str], name: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light").new_page()
    page.context.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"http://127.0.0.1:{run.port}/")
    page.get_by_label("Your name").fill(name)
    expect(page.locator("#connection")).to_have_text("Live", timeout=PATIENCE)
    return page


@pytest.fixture
def anna(run: Launched, browser: Browser, complaints: list[str]) -> Iterator[Page]:
    page = visit(run, browser, complaints, "Anna")
    yield page
    page.context.close()


@pytest.fixture
def ben(run: Launched, browser: Browser, complaints: list[str]) -> Iterator[Page]:
    page = visit(run, browser, complaints, "Ben")
    yield page
    page.context.close()


def speak(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def said(page: Page, text: str) -> None:
    """`text` is on the page once, and acknowledged."""
    message = page.get_by_role("log").get_by_role("listitem").filter(has_text=text)
    expect(message).to_have_count(1, timeout=PATIENCE)
    expect(message).not_to_have_class(re.compile("unsent"), timeout=PATIENCE)


def master_of(run: Launched) -> int:
    """The process of gunicorn that has the service's workers below it."""
    named = [pid for pid in run.descendants() if b"service.wsgi" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return min(named)


def texts(page: Page) -> list[str]:
    return page.locator("#messages .message p").all_inner_texts()


def test_two_visitors_talk_without_having_signed_in(anna: Page, ben: Page) -> None:
    speak(anna, f"Hello {MARKUP}")
    said(ben, f"Hello {MARKUP}")
    speak(ben, "Good evening")
    for page in (anna, ben):
        said(page, "Hello")
        said(page, "Good evening")
        assert "guest-" in page.get_by_role("log").get_by_role("listitem").filter(has_text="evening").inner_text()
    assert texts(anna)[-2:] == texts(ben)[-2:]
    expect(anna.get_by_role("log").get_by_role("listitem").filter(has_text="Hello")).to_have_class(re.compile("mine"))
    expect(ben.get_by_role("log").get_by_role("listitem").filter(has_text="Hello")).not_to_have_class(
        re.compile("mine")
    )


def test_a_newcomer_sees_what_was_said_before(run: Launched, browser: Browser, complaints: list[str]) -> None:
    first = visit(run, browser, complaints, "Anna")
    speak(first, "before you came")
    said(first, "before you came")
    first.context.close()
    later = visit(run, browser, complaints, "Carl")
    said(later, "before you came")
    expect(later.locator("#log")).to_contain_text("connected to worker")
    expect(later.locator("#log")).not_to_contain_text("missed")
    later.context.close()


def test_the_counters_come_over_a_stream(run: Launched, anna: Page, ben: Page) -> None:
    expect(anna.locator("#live-state")).to_have_text("Over server-sent events, once a second", timeout=PATIENCE)
    expect(anna.locator("#websocket")).to_have_text("2", timeout=PATIENCE)
    expect(anna.locator("#sse")).to_have_text("2", timeout=PATIENCE)
    expect(anna.get_by_role("table").get_by_role("row")).to_have_count(3, timeout=PATIENCE)
    expect(anna.get_by_role("cell", name="yours")).to_have_count(1, timeout=PATIENCE)
    expect(anna.get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(r"at most \d+ messages?"), timeout=PATIENCE
    )


def test_who_was_cut_off_gets_what_they_missed_and_sends_what_they_wrote(anna: Page, ben: Page) -> None:
    anna.context.set_offline(True)
    anna.evaluate("line.socket.close(4000, 'lost')")
    expect(anna.locator("#log")).to_contain_text("lost (4000", timeout=PATIENCE)
    speak(ben, "while you were away")
    said(ben, "while you were away")
    speak(anna, "written without a line")
    unsent = anna.get_by_role("log").get_by_role("listitem").filter(has_text="written without a line")
    expect(unsent).to_have_class(re.compile("unsent"))

    anna.context.set_offline(False)

    for page in (anna, ben):
        said(page, "while you were away")
        said(page, "written without a line")
    assert texts(anna)[-2:] == texts(ben)[-2:] == ["while you were away", "written without a line"]
    expect(anna.locator("#log")).to_contain_text("1 message came that you had missed")


def test_who_is_kicked_is_told_and_does_not_come_back(run: Launched, anna: Page) -> None:
    user = anna.evaluate("line.user")
    headers = {"Authorization": f"Bearer {run.value('admin token')}", "Content-Type": "application/json"}
    body = f'{{"user": "{user}", "reason": "enough", "code": 1008}}'.encode()
    answer = run.ask("POST", "/admin/connections/kick", body=body, headers=headers, port=run.admin_port)
    assert 1 <= answer.document["kicked"]
    expect(anna.locator("#connection")).to_have_text("Closed", timeout=PATIENCE)
    expect(anna.locator("#log")).to_contain_text("1008, enough")
    expect(anna.get_by_role("button", name="Send")).to_be_disabled()
    expect(anna.get_by_role("button", name="Cut it for 5 seconds")).to_be_disabled()
    expect(anna.locator("#say-problem")).to_contain_text("load the page again")


def test_whatever_somebody_publishes_is_text_on_every_page(anna: Page, ben: Page) -> None:
    for data in (
        {"text": {"toString": 5, "valueOf": 5}},
        {"text": " "},
        {"other": 1},
        None,
        [1],
        "a" + "\n" * 250 + "b",
        "plain",
    ):
        anna.evaluate("(data) => send({ type: 'publish', channel: CHANNEL, data })", data)
    last = ben.get_by_role("log").get_by_role("listitem").last
    expect(last).to_contain_text("plain", timeout=PATIENCE)
    expected = ['{"text":{"toString":5,"valueOf":5}}', "(nothing)", '{"other":1}', "null", "[1]"]
    assert expected == texts(ben)[-7:-2]
    assert texts(ben)[-2].count("\n") < 8


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(anna: Page, ben: Page, colours: str) -> None:
    anna.get_by_label("Colours").select_option(colours)
    speak(ben, "hello")
    expect(anna.get_by_role("cell", name="yours")).to_have_count(1, timeout=PATIENCE)
    for hue in range(8):
        anna.locator("#messages .message").last.evaluate("(each, hue) => { each.dataset.hue = String(hue); }", hue)
        assert (hue, []) == (hue, faint_texts(anna))
    assert [] == unnamed_controls(anna)
    assert "en" == anna.locator("html").get_attribute("lang")


def test_the_tab_key_goes_through_the_page_in_its_order(anna: Page) -> None:
    anna.reload()
    expect(anna.locator("#connection")).to_have_text("Live", timeout=PATIENCE)
    names = focused_names(anna, 7)
    assert ["Colours", "Your name", "Message", "Send"] == [
        name for name in names if name in ("Colours", "Your name", "Message", "Send")
    ]
    assert "Cut it for 5 seconds" == names[-1]


def test_a_narrow_screen_shows_everything_below_each_other(anna: Page) -> None:
    anna.set_viewport_size({"width": 390, "height": 800})
    wider = anna.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert 0 == wider
    assert 300 < anna.locator("#messages").evaluate("(element) => element.clientHeight")


def test_a_reload_of_the_service_is_a_moment_and_loses_nothing(run: Launched, anna: Page, ben: Page) -> None:
    # Last: it replaces the workers.
    cut = anna.get_by_role("button", name="Cut it for 5 seconds")
    cut.click()
    expect(anna.locator("#connection")).to_have_text("Cut")
    expect(cut).to_be_disabled()
    speak(anna, "before the reload")
    said(ben, "before the reload")
    os.kill(master_of(run), signal.SIGHUP)
    expect(ben.locator("#log")).to_contain_text("lost (1012", timeout=PATIENCE)
    for page in (anna, ben):
        expect(page.locator("#connection")).to_have_text("Live", timeout=PATIENCE)
    speak(ben, "after the reload")
    for page in (anna, ben):
        said(page, "before the reload")
        said(page, "after the reload")
    expect(anna.locator("#live-state")).to_have_text("Over server-sent events, once a second", timeout=PATIENCE)
