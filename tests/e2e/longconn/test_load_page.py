"""What docs/load.md tells its reader to type works, and its table is the command's."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from longconn.load.__main__ import parser, plan_of
from longconn.load.plan import Plan
from tests.support.page import blocks_of, rows_of
from tests.support.served_page import check_served_section, served_sections_of

PAGE = Path(__file__).parents[3] / "docs" / "load.md"


@pytest.mark.parametrize("section", served_sections_of(PAGE))
def test_the_application_of_a_section_answers_as_printed(section: str, tmp_path: Path) -> None:
    check_served_section(PAGE, section, tmp_path)


def test_the_commands_are_understood() -> None:
    commands = [block.text for block in blocks_of(PAGE) if block.language == "sh"]
    assert commands
    for command in commands:
        _, _, module, *arguments = shlex.split(command)
        assert "longconn.load" == module
        assert isinstance(plan_of(arguments)[0], Plan)


def test_the_table_of_options_is_that_of_the_command() -> None:
    written = [row[0].strip("`") for row in rows_of(PAGE, "options of load")]
    there = [
        (action.option_strings or [action.dest])[0]
        for action in parser()._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    assert there == written


def test_the_defaults_in_the_table_are_those_of_the_command() -> None:
    written = {row[0].strip("`").lstrip("-"): row[1] for row in rows_of(PAGE, "options of load")}
    for action in parser()._actions:
        if isinstance(action.default, int | float) and not isinstance(action.default, bool) and action.default:
            assert f"{action.default:g}" == written[action.dest.replace("_", "-")]
