"""Pictures of the pages for the documentation: `python -m tests.support.pictures docs/images [admin] [demo]`.

Of the admin page: a real service of two workers, three backends that fare differently, and callers for a minute and a half. Of
the demo page: two visitors, and a crowd that listens.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

from playwright.sync_api import Browser, Page

from tests.support.browser import launched_browser
from tests.support.launched import Launched, launched, prepare_folder

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["take_admin_pictures", "take_demo_pictures"]

BACKENDS = ("mail", "orders", "payments")
SIZE = {"width": 1440, "height": 900}
SECONDS = 75
JSON = {"Content-Type": "application/json"}
CROWD = 3_000
TALK = (
    "Hello! Which worker are you on?",
    "The other one. You came to me all the same.",
    "And three thousand more have heard us, on two workers.",
    "They cost next to nothing while they only listen. Shall I cut your line?",
    "Do. I come back and get what I missed.",
)


class Backends:
    """All backends in one server: those that are named in `broken` answer so large a share of their calls with 500."""

    def __init__(self) -> None:
        self.broken: dict[str, float] = {}
        self.server = make_server("127.0.0.1", 0, self._answer, handler_class=_Quiet)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        name = environ["PATH_INFO"].split("/")[1]
        is_broken = random.random() < self.broken.get(name, 0.0)
        start_response("500 Broken" if is_broken else "200 OK", [("Content-Length", "0")])
        return [b""]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


def take_admin_pictures(folder: Path) -> None:
    """Leave admin.png and admin-dark.png in `folder`."""
    backends = Backends()
    variables = {
        "WEB_CONCURRENCY": "2",
        "RATE_LIMIT": "40/second",
        "RATE_LIMIT_BURST": "40",
        **{f"BACKENDS__{name}": backends.url(name) for name in BACKENDS},
    }
    with launched(prepare_folder(Path(tempfile.mkdtemp())), variables) as run, launched_browser() as browser:
        page = browser.new_context(viewport=SIZE, color_scheme="light").new_page()  # type: ignore[arg-type]
        _sign_in(page, run)
        ended = threading.Event()
        headers = run.sign_in()
        callers = [threading.Thread(target=_call, args=(run, name, headers, ended)) for name in BACKENDS]
        for _ in range(14):  # more than may try
            run.ask("POST", "/api/v1/auth/token", body=b'{"username": "x", "password": "y"}', headers=JSON)
        for caller in callers:
            caller.start()
        try:
            _let_things_happen(page, run, backends)
            page.get_by_label("Show").select_option("change")
            for colours, file in (("dark", "admin-dark.png"), ("light", "admin.png")):
                page.get_by_label("Colours").select_option(colours)
                page.wait_for_timeout(500)
                page.screenshot(path=folder / file, full_page=True)
        finally:
            ended.set()
            for caller in callers:
                caller.join()
            backends.server.shutdown()


def _let_things_happen(page: Page, run: Launched, backends: Backends) -> None:
    page.wait_for_timeout(SECONDS * 400)
    backends.broken = {"orders": 0.15, "payments": 1.0}
    page.wait_for_timeout(SECONDS * 450)
    page.get_by_role("button", name="Open mail", exact=True).click()
    page.get_by_label("For how long").select_option("3600")
    page.get_by_label("Reason").fill("the mail server moves")
    page.locator("#order-confirm").click()
    page.get_by_role("button", name="Override login", exact=True).click()
    page.get_by_label("Limits", exact=True).fill("5/minute")
    page.get_by_label("Reason").fill("somebody guesses passwords")
    page.locator("#order-confirm").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.wait_for_timeout(SECONDS * 150)


def _sign_in(page: Page, run: Launched) -> None:
    page.goto(f"http://127.0.0.1:{run.admin_port}/admin/")
    page.get_by_label("Your name").fill("anna")
    page.get_by_label("Admin token").fill(run.value("admin token"))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="payments").wait_for()


def _call(run: Launched, name: str, headers: Mapping[str, str], ended: threading.Event) -> None:
    started = time.monotonic()
    while not ended.wait(0.02 + 0.05 * random.random()):
        run.ask("GET", f"/api/v1/backends/{name}/hello", headers=headers)
        if int(time.monotonic() - started) % 20 == 0:
            time.sleep(0.05)  # callers come and go


def take_demo_pictures(folder: Path) -> None:
    """Leave demo.png and demo-dark.png in `folder`."""
    variables = {"WEB_CONCURRENCY": "2", "RATE_LIMIT": "5000/second", "RATE_LIMIT_BURST": "5000"}
    with launched(prepare_folder(Path(tempfile.mkdtemp())), variables) as run, launched_browser() as browser:
        anna, ben = (_visit(browser, run, name) for name in ("Anna", "Ben"))
        crowd = subprocess.Popen(
            [
                *(sys.executable, "-m", "longconn.load", "ws", f"ws://127.0.0.1:{run.port}/ws"),
                *("--connections", str(CROWD), "--rate", "600", "--seconds", "35"),
                *("--field", f"Authorization: {run.sign_in()['Authorization']}"),
                *("--hello", '{"type": "subscribe", "channel": "demo:lobby"}'),
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            anna.wait_for_timeout(10_000)
            for visitor, text in zip((anna, ben) * 3, TALK, strict=False):
                visitor.get_by_role("textbox", name="Message").fill(text)
                visitor.keyboard.press("Enter")
                anna.wait_for_timeout(1_500)
            anna.get_by_role("button", name="Cut it for 5 seconds").click()
            ben.get_by_role("textbox", name="Message").fill("Gone. You will read this all the same.")
            ben.keyboard.press("Enter")
            anna.wait_for_timeout(9_000)
            anna.evaluate("document.activeElement.blur()")
            for colours, file in (("dark", "demo-dark.png"), ("light", "demo.png")):
                anna.get_by_label("Colours").select_option(colours)
                anna.wait_for_timeout(500)
                anna.screenshot(path=folder / file)
        finally:
            crowd.terminate()
            crowd.wait()


def _visit(browser: Browser, run: Launched, name: str) -> Page:
    page = browser.new_context(viewport=SIZE, color_scheme="light").new_page()  # type: ignore[arg-type]
    page.goto(f"http://127.0.0.1:{run.port}/")
    page.get_by_label("Your name").fill(name)
    return page


if __name__ == "__main__":
    wanted = sys.argv[2:] or ["admin", "demo"]
    if "admin" in wanted:
        take_admin_pictures(Path(sys.argv[1]))
    if "demo" in wanted:
        take_demo_pictures(Path(sys.argv[1]))
