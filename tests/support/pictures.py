"""Pictures of the admin page for the documentation: `python -m tests.support.pictures docs/images`.

A real service of two workers, three backends that fare differently, and callers for a minute and a half.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

from playwright.sync_api import Page

from tests.support.browser import launched_browser
from tests.support.launched import Launched, launched, prepare_folder

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["take_pictures"]

BACKENDS = ("mail", "orders", "payments")
SIZE = {"width": 1440, "height": 900}
SECONDS = 75
JSON = {"Content-Type": "application/json"}


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


def take_pictures(folder: Path) -> None:
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


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
