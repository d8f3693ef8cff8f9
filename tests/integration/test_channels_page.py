"""What docs/channels.md tells its reader works, and is so."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from longconn import HistoryLimits, Settings
from longconn.adapters.commands import channels as commands
from longconn.channels.lmdb_broker import SIZE
from tests.support.page import blocks_of, check_links, check_section, sections_of

PAGE = Path(__file__).parents[2] / "docs" / "channels.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("section", sections_of(PAGE))
def test_the_code_of_a_section_runs_and_answers_as_printed(section: str, tmp_path: Path) -> None:
    check_section(PAGE, section, {"LONGCONN_CHANNELS": str(tmp_path / "channels")})


def test_its_links_lead_somewhere() -> None:
    check_links(PAGE)


def test_the_defaults_it_names_are_those() -> None:
    arguments = ", ".join(f"{field.name}={field.default!r}" for field in fields(HistoryLimits))
    assert f"HistoryLimits({arguments.replace('1048576', '1_048_576')})" in TEXT
    assert (SIZE, 128 << 20) == (Settings().channels_size, SIZE)
    assert "128 MiB unless it is set" in TEXT


def test_the_commands_it_shows_are_those_there_are() -> None:
    shown = {
        line.split()[4] for block in blocks_of(PAGE) for line in block.text.splitlines() if line.startswith("flask ")
    }
    assert set(commands.commands) == shown
