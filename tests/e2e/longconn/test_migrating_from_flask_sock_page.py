"""What docs/migrating-from-flask-sock.md tells its reader to type works, and its tables are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longconn.adapters.sock import BlockingWebSocket, read_options
from tests.support.longconn_server import PARKING
from tests.support.page import blocks_of
from tests.support.served_page import check_served_section, served_sections_of

PAGE = Path(__file__).parents[3] / "docs" / "migrating-from-flask-sock.md"


@pytest.mark.parametrize("section", served_sections_of(PAGE))
def test_the_application_of_a_section_answers_as_printed(section: str, tmp_path: Path) -> None:
    check_served_section(PAGE, section, tmp_path)


def test_both_ways_are_tried() -> None:
    assert ["Swap the import", "Move to classes"] == served_sections_of(PAGE)


def test_the_command_of_the_page_starts_the_worker() -> None:
    (shown,) = [block.text for block in blocks_of(PAGE) if block.language == "sh"]
    assert f"gunicorn -k {PARKING} app:app\n" == shown


def test_a_websocket_has_all_that_the_page_says() -> None:
    named = set(re.findall(r"`ws\.(\w+)", PAGE.read_text(encoding="utf-8"))) - {"channels"}
    assert len(named) > 6
    assert set() == {name for name in named if not hasattr(BlockingWebSocket, name)}


def test_the_options_of_the_page_are_understood() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("receive_bytes", "thread_class", "event_class", "selector_class", "idle_timeout", "compression"):
        assert f"`{name}`" in text
        read_options({name: 1 if name == "idle_timeout" else bool(0)})
