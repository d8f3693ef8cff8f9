"""What docs/websockets.md tells its reader to type works, and what its tables say is so."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from websockets import Origin
from websockets.sync.client import connect

from longconn import event_stream
from longconn.core.frames import CloseCode
from longconn.metrics import collect
from longconn.scoreboard import Scoreboard
from longconn.streaming.options import EventStreamOptions
from longconn.websocket.connection import WebSocketConnection
from longconn.websocket.options import WebSocketOptions
from tests.support.launched import free_ports
from tests.support.longconn_server import PARKING, gunicorn_server
from tests.support.page import blocks_of, rows_of
from tests.support.served_page import application_of, check_served_section, served_sections_of

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "websockets.md"
README = ROOT / "README.md"
ECHO = "1. An endpoint"
EVENTS = "5. Events for those who only listen"


@pytest.mark.parametrize("section", served_sections_of(PAGE))
def test_the_application_of_a_section_answers_as_printed(section: str, tmp_path: Path) -> None:
    check_served_section(PAGE, section, tmp_path)


def test_the_application_of_the_readme_has_rooms_that_remember(tmp_path: Path) -> None:
    application = application_of(README, "WebSockets, events, channels")
    (tmp_path / "app.py").write_text(application, encoding="utf-8")
    with gunicorn_server(
        *("--pythonpath", f"{ROOT},{tmp_path}"),
        app="app:app",
        environment={"LONGCONN_CHANNELS": str(tmp_path / "channels")},
    ) as server:
        with connect(f"ws://127.0.0.1:{server.port}/rooms/tea") as first:
            first.send("hello")
            assert "hello" == first.recv(5)
        with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=5)) as listener:
            listener.request("GET", "/rooms/tea/events?since=earliest")
            assert b"data: hello\n" == next(
                line for line in iter(listener.getresponse().readline, b"") if line[:4] == b"data"
            )


def test_nothing_in_python_is_left_out() -> None:
    tried = [block for block in blocks_of(PAGE) if block.section in served_sections_of(PAGE)]
    assert PAGE.read_text(encoding="utf-8").count("```py") == sum(block.language.startswith("py") for block in tried)


def test_the_command_of_the_page_starts_the_worker() -> None:
    (shown,) = [block.text for block in blocks_of(PAGE) if block.language == "sh"]
    assert f"gunicorn -k {PARKING} app:app\n" == shown


def test_the_table_of_options_is_that_of_the_code() -> None:
    written = {row[0].strip("`"): row[1].strip("`") for row in rows_of(PAGE, "options of endpoint")}
    there = {field.name: shown(field.default) for field in dataclasses.fields(WebSocketOptions)}
    assert there == written


def test_the_table_of_event_streams_is_that_of_the_code() -> None:
    written = {row[0].strip("`"): row[1].strip("`") for row in rows_of(PAGE, "options of event_stream")}
    taken = {
        name: parameter.default
        for name, parameter in inspect.signature(event_stream).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    options = {field.name: field.default for field in dataclasses.fields(EventStreamOptions)}
    assert {name: shown(value) for name, value in {**taken, **options}.items()} == written


def test_the_page_names_no_metric_that_is_none() -> None:
    named = set(re.findall(r"`(longconn_\w+)", PAGE.read_text(encoding="utf-8")))
    there = {sample for family in collect(Scoreboard(rows=1)) for sample in (family.name, f"{family.name}_total")}
    assert named
    assert set() == named - there


def test_the_close_codes_are_those_that_are_sent() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Close codes\n")[1].split("\n## ")[0]
    codes = {int(code) for code in re.findall(r"^\| (\d{4}) \|", section, re.MULTILINE)}
    assert codes <= {int(code) for code in CloseCode}
    assert {1000, 1001, 1002, 1007, 1008, 1009, 1011, 1012, 1013} <= codes


def test_a_connection_has_all_that_the_page_says() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## The connection\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`conn\.(\w+)", section))
    assert len(named) > 10
    assert set() == {name for name in named if not hasattr(WebSocketConnection, name)}


@pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx here")
def test_both_kinds_of_connections_pass_through_nginx_as_the_page_sets_it_up(tmp_path: Path) -> None:
    application = application_of(PAGE, EVENTS) + "\n\n" + _endpoint_of(application_of(PAGE, ECHO))
    (tmp_path / "app.py").write_text(application, encoding="utf-8")
    with (
        gunicorn_server(
            *("--pythonpath", f"{ROOT},{tmp_path}"),
            app="app:app",
            environment={"LONGCONN_CHANNELS": str(tmp_path / "channels")},
        ) as server,
        _nginx(tmp_path, server.port) as port,
    ):
        with connect(f"ws://127.0.0.1:{port}/echo", origin=Origin(f"http://127.0.0.1:{port}")) as client:
            client.send("through nginx")
            assert "through nginx" == client.recv(5)
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=5)) as listener:
            listener.request("GET", "/news")
            stream = listener.getresponse()
            with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=5)) as publisher:
                publisher.request("POST", "/news", b"it rains")
                assert 200 == publisher.getresponse().status
            assert b"data: it rains\n" == next(line for line in iter(stream.readline, b"") if line[:4] == b"data")


def shown(value: object) -> str:
    """A default as the tables write it."""
    return repr(value).replace("'", '"')


def _endpoint_of(application: str) -> str:
    """What an application adds to one that has its `app` and `ws`."""
    return application[application.index("@ws.endpoint") :]


@contextlib.contextmanager
def _nginx(folder: Path, upstream: int) -> Iterator[int]:
    """An nginx set up as on the page. Its port."""
    (port,) = free_ports(1)
    (shown,) = [block.text for block in blocks_of(PAGE) if block.language == "nginx"]
    shown = shown.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}").replace(
        "listen 8080;", f"listen 127.0.0.1:{port};"
    )
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
        f"events {{ worker_connections 64; }}\nhttp {{\naccess_log off;\n{temporary}{shown}}}\n"
    )
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.communicate()
