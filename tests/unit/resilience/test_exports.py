"""The front door offers just what it lists, and importing it stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import resilience


def test_everything_that_is_listed_is_there() -> None:
    assert sorted(resilience.__all__) == list(resilience.__all__)
    assert all(getattr(resilience, name) is not None for name in resilience.__all__)


def test_anything_else_is_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        resilience.nonsense  # noqa: B018  # the access is the test


def test_a_plain_program_starts_without_flask_gevent_or_redis() -> None:
    program = (
        "import sys; sys.modules['redis'] = None; import resilience\n"
        "assert not {'flask', 'gevent', 'gunicorn', 'sqlalchemy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    assert 0 == subprocess.run([sys.executable, "-c", program], check=False).returncode
