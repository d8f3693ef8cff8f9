"""What docs/rate-limiting.md and the page for those who come from Flask-Limiter tell their reader works, and is so."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask_limiter
import pytest

from resilience import RateLimiter, open_storage, rate_limit, shared_limit
from resilience.adapters.options import Options
from tests.support.page import Block, blocks_of, check_section, rows_of, sections_of, served
from tests.support.redis_server import RedisServer, running_redis, server_programs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rate-limiting.md"
MIGRATION = ROOT / "docs" / "migrating-from-flask-limiter.md"
TUTORIAL = "1. A limit"


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """The server that the pages speak of."""
    with running_redis(next(iter(server_programs().values()))) as server:
        yield server


@pytest.mark.parametrize(
    ("document", "section"),
    [(document, section) for document in (PAGE, MIGRATION) for section in sections_of(document)],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_the_code_of_a_section_runs_and_answers_as_printed(
    redis_server: RedisServer, document: Path, section: str
) -> None:
    check_section(document, section, {"REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"})


def test_nothing_in_python_is_left_out() -> None:
    for document in (PAGE, MIGRATION):
        tried = sum(block.language in ("python", "pycon") for block in blocks_of(document))
        assert document.read_text(encoding="utf-8").count("```py") == tried


def test_the_first_application_answers_as_the_page_says(tmp_path: Path) -> None:
    blocks = [block for block in blocks_of(PAGE) if block.section == TUTORIAL]
    python, shell, answer = (the(blocks, language).text for language in ("python", "sh", ""))
    with served(tmp_path, python) as port:
        asked = shell.replace("127.0.0.1:5000", f"127.0.0.1:{port}")
        done = subprocess.run(["bash", "-euc", asked], capture_output=True, text=True, check=True, timeout=30)
    statuses, _, refusal = done.stdout.partition("\n")
    assert "200 200 200 200 200 429 429 429" == statuses.strip()
    seen = without_numbers(refusal).splitlines()
    head, _, body = without_numbers(answer).partition("\n\n")
    assert set(head.splitlines()) <= {line.strip() for line in seen}
    assert seen[-1].startswith(body.split(", ...")[0])


def test_the_tables_of_options_are_those_of_the_code() -> None:
    assert parameters(RateLimiter.__init__, without=("limits", "name")) == documented("options of RateLimiter")
    assert parameters(open_storage, without=("uri",)) == documented("options of open_storage")
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    assert {name: shown(value) for name, value in defaults.items()} == documented("options of Resilience")


def test_both_decorators_take_the_options_of_a_limiter() -> None:
    options = parameters(RateLimiter.__init__, without=("limits", "name")).keys()
    for function in (rate_limit, shared_limit):
        taken = inspect.signature(function).parameters
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
            assert options <= taken.keys(), function.__name__


@pytest.mark.parametrize(
    ("table", "function"),
    [
        ("arguments of Limiter", flask_limiter.Limiter.__init__),
        ("arguments of limit", flask_limiter.Limiter.limit),
    ],
)
def test_the_side_by_side_tables_leave_nothing_of_flask_limiter_out(
    table: str, function: Callable[..., object]
) -> None:
    left = " ".join(row[0] for row in rows_of(MIGRATION, table))
    named = set(re.findall(r"\w+", left))
    endings = {
        f"{kind}_limits{ending}" for kind in ("default", "application") for ending in re.findall(r"`(_\w+)`", left)
    }
    assert set() == set(inspect.signature(function).parameters) - {"self"} - named - endings


def the(blocks: list[Block], language: str) -> Block:
    (found,) = [block for block in blocks if block.language == language]
    return found


def without_numbers(text: str) -> str:
    return re.sub(r"(Retry-After: |r=|t=)\d+", r"\1N", text)


def documented(table: str) -> dict[str, str]:
    """Names and defaults of a table of options, defaults without their backticks; None where it is put in words."""
    return {
        row[0].strip("`"): row[1].strip("`") if re.fullmatch("`[^`]*`", row[1]) else "None"
        for row in rows_of(PAGE, table)
    }


def parameters(function: Callable[..., Any], *, without: tuple[str, ...]) -> dict[str, str]:
    found = inspect.signature(function).parameters.values()
    return {parameter.name: shown(parameter.default) for parameter in found if parameter.name not in ("self", *without)}


def shown(value: object) -> str:
    """A default as the tables write it."""
    if type(value).__name__ == "SystemClock":
        return "None"  # put in words
    return value if isinstance(value, str) else str(value)
