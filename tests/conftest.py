"""What holds for every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.support.examples import load_profile
from tests.support.untraced import trace_children_by_greenlet

load_profile()
trace_children_by_greenlet()


@pytest.fixture(autouse=True)
def _logging_as_found() -> Iterator[None]:
    """Give the root logger back as it was: a service that one test builds would write the lines of all that follow it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers and not type(handler).__module__.startswith("_pytest."):
            root.removeHandler(handler)
    root.setLevel(level)
