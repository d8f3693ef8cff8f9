"""Tests that mostly wait do it together.

Those with the mark `together` of one module run a few at a time, each in a thread, as soon as what they need is there.
pytest reports each in its turn. Such a test takes parameters, fixtures of its module's scope and `name`, and no others. It
leaves what it has opened to `tests.support.opened` if it does not close it itself, and asks for no moment more exact than
a machine with other things to do can keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.opened import close_opened

AT_ONCE = 4
_started: dict[str, Future[None]] = {}
_pool = ThreadPoolExecutor(AT_ONCE)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "together: mostly waits, and runs beside others of its module")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return _name_of(request.node)


@pytest.fixture(autouse=True)
def _close_opened() -> Iterator[None]:
    yield
    close_opened()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Have those that wait run, and if this is one of them, wait for its result."""
    for item in pyfuncitem.session.items:
        if isinstance(item, pytest.Function) and item.module is pyfuncitem.module and _waits(item):
            _start(item, pyfuncitem)
    if not _waits(pyfuncitem):
        return None
    _started[pyfuncitem.nodeid].result()
    return True


def _waits(item: pytest.Function) -> bool:
    return item.get_closest_marker("together") is not None


def _of_module(item: pytest.Function) -> dict[str, Any]:
    """The values of those of its fixtures that all tests of its module share."""
    return {name: value for name, value in item.funcargs.items() if _is_shared(item, name)}


def _is_shared(item: pytest.Function, name: str) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.get(name) or ()
    return any(definition.scope == "module" for definition in definitions[-1:])


def _params(item: pytest.Function) -> dict[str, Any]:
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def _start(item: pytest.Function, first: pytest.Function) -> None:
    """Have it run, unless it does or what it needs is not there yet."""
    wanted, params, theirs = item._fixtureinfo.argnames, _params(item), _params(first)
    if any(params.get(name) != theirs.get(name) for name in wanted if _is_shared(item, name)):
        return  # it is for another variant of that fixture
    given = {"name": _name_of(item), **params, **_of_module(first)}
    if item.nodeid not in _started and all(name in given for name in wanted):
        _started[item.nodeid] = _pool.submit(_run, item, {name: given[name] for name in wanted})


def _name_of(item: pytest.Function) -> str:
    return re.sub(r"\W", "-", item.name)


def _run(item: pytest.Function, arguments: dict[str, Any]) -> None:
    try:
        item.obj(**arguments)
    finally:
        close_opened()
