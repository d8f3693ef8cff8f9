"""What docs/circuit-breaker.md and the pages for those who come from elsewhere tell their reader works, and is so."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pybreaker
import pytest
from flask import Flask

from resilience import CircuitBreaker, RateLimiter, Resilience, circuit_breaker, create_admin_blueprint
from resilience.adapters.answering import PARTS
from resilience.adapters.meeting import folder_of
from resilience.adapters.metrics import families
from resilience.adapters.signals import SIGNALS
from resilience.adapters.terminal import resilience as commands
from resilience.core.breaker import STATES, BreakerPolicy
from resilience.registry import PROCESS_REGISTRY
from resilience.storage.state_shm import SharedMemoryStateStorage
from tests.support.page import blocks_of, check_section, rows_of, sections_of, served

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "circuit-breaker.md"
MIGRATION = ROOT / "docs" / "migrating-from-pybreaker.md"
FROM_JAVA = ROOT / "docs" / "coming-from-resilience4j.md"
DOCUMENTS = (PAGE, MIGRATION, FROM_JAVA)
OPERATING = "The admin endpoint"
TOKEN = "a-token-that-nobody-guesses-0123456789"

VARYING = frozenset({"since", "retry_after", "expires_in", "host", "pid"})
"""Of these only the kind of value is compared."""


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """The file of shared memory that the page names does not exist before, nor after, nor does the folder that goes with it."""
    names = re.findall(r"shm://(page-[a-z-]+)", PAGE.read_text(encoding="utf-8"))
    states = [SharedMemoryStateStorage(f"shm://{name}") for name in names]
    for state in states:
        state.path.unlink(missing_ok=True)
    yield
    for state in states:
        state.path.unlink(missing_ok=True)
        shutil.rmtree(folder_of(state) or "", ignore_errors=True)


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize(
    ("document", "section"),
    [(document, section) for document in DOCUMENTS for section in sections_of(document)],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_the_code_of_a_section_runs_and_answers_as_printed(document: Path, section: str) -> None:
    check_section(document, section, {"RESILIENCE_ADMIN_TOKEN": TOKEN})


def test_nothing_in_python_is_left_out() -> None:
    for document in DOCUMENTS:
        tried = sum(block.language in ("python", "pycon") for block in blocks_of(document))
        assert document.read_text(encoding="utf-8").count("```py") == tried


def test_the_admin_endpoint_and_the_terminal_answer_as_the_page_says(tmp_path: Path) -> None:
    asked = re.findall(r"<!-- (asks app|answered) -->\n```(\w*)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (application,) = [
        block.text for block in blocks_of(PAGE) if block.section == OPERATING and block.language == "python"
    ]
    printed: list[str] = []
    compared = []
    with served(tmp_path, application, {"RESILIENCE_ADMIN_TOKEN": TOKEN}) as port:
        for kind, language, text in asked:
            if kind == "asks app":
                printed = run_shell(tmp_path, text.replace("127.0.0.1:5000", f"127.0.0.1:{port}")).splitlines()
            elif language == "json":
                compared.append("json")
                assert [] == list(differences(json.loads(text), json.loads(printed[-1])))
            else:
                compared.append("table")
                assert squeezed(text.splitlines()) == squeezed(printed[-len(text.splitlines()) :])
            if "5000/pay;" in text:
                assert "500 500 503" == printed[0].strip()
    assert ["json", "json", "json", "table"] == compared


def test_the_table_of_options_is_that_of_the_code() -> None:
    page = {row[0].strip("`"): (row[1], row[2]) for row in rows_of(PAGE, "options of CircuitBreaker")}
    made = CircuitBreaker(name="of the class")
    try:
        decorated: Any = circuit_breaker("of the decorator")(str)
    finally:
        PROCESS_REGISTRY.clear()
    parameters = list(inspect.signature(CircuitBreaker.__init__).parameters.values())[1:]
    assert [parameter.name for parameter in parameters] == list(page)
    for parameter in parameters:
        shown = tuple(default_of(breaker, parameter) for breaker in (made, decorated.circuit))
        if parameter.name == "name":
            assert "`None`" == page["name"][0]
        elif "`" in page[parameter.name][0] and "attribute" not in page[parameter.name][0]:
            assert shown == page[parameter.name], parameter.name
        else:  # put in words, as what has no short form is
            assert callable(parameter.default) or not isinstance(parameter.default, int | str | None), parameter.name


def test_the_decorator_takes_the_options_of_the_class() -> None:
    (options,) = get_args(get_type_hints(circuit_breaker)["options"])
    taken = list(inspect.signature(CircuitBreaker.__init__).parameters)
    assert {*taken} - {"self", "name"} == set(options.__annotations__)
    pybreakers = [name for name in inspect.signature(pybreaker.CircuitBreaker.__init__).parameters if name in taken]
    assert taken[: len(pybreakers)] == pybreakers


def test_the_table_of_events_is_that_of_the_code() -> None:
    page = [tuple(cell.replace("`", "") for cell in row[:3]) for row in rows_of(PAGE, "events")]
    named = {id(signal): name for name, signal in vars(sys.modules["resilience.adapters.signals"]).items()}
    assert {
        (event.__name__, f"{event.kind}, {event.type}", named[id(signal)]) for event, signal in SIGNALS.items()
    } == set(page)


def test_the_table_of_routes_is_that_of_the_code() -> None:
    app = Flask("routes")
    Resilience(app, admin_token=TOKEN)
    app.register_blueprint(create_admin_blueprint())
    real = {
        f"{method} {re.sub(r'<(?:path:)(?:circuit|limiter)>', '<name>', rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/admin") and rule.rule != "/admin"  # which leads to the page
    }
    spelled_out = set()
    for route in real:
        actions = re.search(r"<any\((.*)\):action>", route)
        names = actions[1].replace("'", "").split(",") if actions else [""]
        spelled_out |= {route.replace(actions[0], name) if actions else route for name in names}
    assert spelled_out == {row[0].strip("`") for row in rows_of(PAGE, "routes")}


def test_what_stands_for_the_actuator_is_there() -> None:
    routes = {row[0].strip("`") for row in rows_of(PAGE, "routes")}
    named = {route for row in rows_of(FROM_JAVA, "actuator") for route in re.findall(r"`([A-Z]+ /admin[^`]*)`", row[1])}
    assert named <= routes, named - routes
    assert {route for route in routes if "/circuits/<name>/" in route and route.startswith("POST")} <= named


def test_every_setting_of_a_circuit_has_its_place_beside_resilience4j() -> None:
    text = FROM_JAVA.read_text(encoding="utf-8").split("## A rate limiter")[0]
    assert [] == [field.name for field in fields(BreakerPolicy) if f"`{field.name}" not in text]
    defaults = BreakerPolicy()
    for setting, shown in {
        "minimum_calls": "| 20 |",
        "half_open_max_calls": "| 1, 1 |",
        "slow_call_duration": "| 60 s |",
        "quorum": "| 2, each process by itself |",
    }.items():
        (row,) = [line for line in text.splitlines() if line.count("|") == 6 and f"`{setting}`" in line]
        assert shown in row
        assert f"{getattr(defaults, setting):g}" in shown


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    application = made_application()
    report = {part: PARTS[part](application, {}) for part in ("circuits", "limiters", "storage", "permissions")}
    real = {
        f"{family.name}{sample.suffix}": set(sample.labels)
        for family in families({"1": report})
        for sample in family.samples
        if not family.name.startswith("resilience_limit_")
    }
    page: dict[str, set[str]] = {}
    for names, labels, _ in rows_of(PAGE, "metrics"):
        first, *endings = re.findall(r"`([^`]+)`", names)
        for name in (first, *(full_name(first, ending) for ending in endings)):
            page[name] = set(re.findall(r"`([^`]+)`", labels))
    assert real == page


def test_the_table_of_states_is_that_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8").split("<!-- /diagram -->")[1].split("## Shared circuits")[0]
    assert list(STATES) == re.findall(r"^\| ([a-z-]+) \|", text, re.MULTILINE)[1:]


def test_every_command_of_the_terminal_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8").split("### From a terminal")[1].split("###")[0]
    assert set() == set(commands.commands) - set(re.findall(r"`([a-z-]+)(?: [^`]*)?`", text))


def default_of(breaker: CircuitBreaker, parameter: inspect.Parameter) -> str:
    """What holds where the option is not given, as the table writes it."""
    settings = breaker.settings
    if parameter.name in settings:
        value = settings[parameter.name].value
    elif parameter.name == "throw_new_error_on_trip":
        value = breaker._throw_new_error_on_trip
    else:
        value = parameter.default
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def full_name(first: str, ending: str) -> str:
    """`_sum` behind `..._seconds_count` stands for `..._seconds_sum`; `_slow_calls` for another metric of the same group."""
    if ending == "_sum":
        return first.removesuffix("_count") + ending
    return "resilience4j_circuitbreaker" + ending


def made_application() -> Any:
    """An application with a circuit and a limiter with one bucket for all."""
    app = Flask("metrics")
    limiter = RateLimiter("10/second", name="metered", key="all")
    Resilience(app, circuits=[CircuitBreaker(name="metered")], limiters=[limiter])
    return app.extensions["resilience"]


def run_shell(folder: Path, text: str) -> str:
    """What the commands print, in the folder of the application."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", text],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "ADMIN_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def differences(page: Any, real: Any, place: str = "") -> Iterator[str]:
    """Where the page says what is not so. It may leave members out."""
    if isinstance(page, Mapping) and isinstance(real, Mapping):
        for name, value in page.items():
            if name not in real:
                yield f"{place}/{name} is missing"
            elif name in VARYING:
                if type(value) is not type(real[name]):
                    yield f"{place}/{name}: {value!r} is of another kind than {real[name]!r}"
            else:
                yield from differences(value, real[name], f"{place}/{name}")
    elif isinstance(page, list) and isinstance(real, list):
        if len(page) != len(real):
            yield f"{place}: {len(page)} and not {len(real)}"
        for index, (one, other) in enumerate(zip(page, real, strict=False)):
            yield from differences(one, other, f"{place}/{index}")
    elif page != real:
        yield f"{place}: {page!r} and not {real!r}"


def squeezed(lines: list[str]) -> list[str]:
    """Lines of a table without the widths of columns and without what is left of a time."""
    return [re.sub(r"for \d+ s more", "for N s more", " ".join(line.split())) for line in lines]
