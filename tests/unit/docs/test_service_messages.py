"""The page on the service's messages says what the service does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.errors import REGISTRY
from service.routes import sockets
from service.routes.connections import FILTERS, KICK
from service.services.channels import HEADING, RULES
from service.settings import Settings
from tests.support.page import rows_of

PAGE = Path(__file__).parents[3] / "docs" / "service-messages.md"


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_command_is_there_with_its_members() -> None:
    told = {names_in(kind)[0]: set(names_in(members)) for kind, members, _ in rows_of(PAGE, "commands")}
    assert {kind: set(rules) - set(HEADING) for kind, (rules, _) in RULES.items()} == told


def test_what_a_command_needs_stands_before_what_it_may_have() -> None:
    for kind, members, _ in rows_of(PAGE, "commands"):
        needed, _, _ = members.partition(";")
        assert list(RULES[names_in(kind)[0]][1]) == names_in(needed)


def test_every_type_of_answer_is_there() -> None:
    source = Path(sockets.__file__).read_text(encoding="utf-8")
    said = set(re.findall(r'"type": "(\w+)"', source)) - set(RULES)
    assert said == {names_in(kind)[0] for kind, _, _ in rows_of(PAGE, "answers")}


def test_every_code_has_the_status_of_the_registry() -> None:
    told = {int(code): int(status) for code, status, _ in rows_of(PAGE, "errors")}
    assert told == {code: REGISTRY[code].status for code in told}


@pytest.mark.parametrize("row", rows_of(PAGE, "settings"), ids=lambda row: row[0])
def test_every_setting_has_the_default_that_it_says(row: list[str]) -> None:
    field = Settings.model_fields[names_in(row[0])[0].lower()]
    assert row[1] in (str(field.default), f"{field.default:g}" if isinstance(field.default, float) else "") or (
        field.default is None and row[1] == "on, but in production"
    )


def test_all_that_connections_can_be_chosen_by_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    query = re.search(r"/admin/connections\?([\w=&]+)`", text)
    assert query is not None
    assert {*FILTERS, "worker", "limit"} == set(query[1].replace("=", "").split("&"))
    kick = re.search(r"kick` with one or more of (.*?);", text)
    assert kick is not None
    assert set(KICK) - {"code", "reason"} == set(names_in(kick[1]))
