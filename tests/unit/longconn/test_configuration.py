"""What a gunicorn.conf.py may say to the worker."""

from __future__ import annotations

from typing import Any

import pytest

import longconn
from longconn import configuration
from longconn.configuration import Hooks, configure, hooks


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "_hooks", Hooks())


def deregister(worker: Any) -> None:
    """Something to be called."""


def test_without_a_word_there_is_no_hook_and_no_default() -> None:
    assert Hooks(None, None, None, None, {}) == hooks()


def test_later_calls_add_to_earlier_ones() -> None:
    configure(on_drain=deregister)
    configure(defaults={"head_timeout": 5})
    assert Hooks(on_drain=deregister, defaults={"head_timeout": 5}) == hooks()


def test_the_latest_word_on_a_hook_counts() -> None:
    configure(on_drain=deregister)
    configure(on_drain=None)
    assert Hooks() == hooks()


def test_what_is_no_hook_is_named_and_nothing_is_changed() -> None:
    with pytest.raises(
        TypeError,
        match=r"^longconn\.configure\(\) knows defaults, on_drain, on_drained, on_listening_closed, render_refusal, "
        r"not on_dain, on_start$",
    ):
        configure(on_drain=deregister, on_start=deregister, on_dain=deregister)
    assert Hooks() == hooks()


def test_defaults_of_one_configuration_are_not_anothers() -> None:
    hooks().defaults["head_timeout"] = 1
    assert {} == Hooks().defaults


def test_the_front_door_has_everything_that_it_names() -> None:
    assert [] == [name for name in longconn.__all__ if not hasattr(longconn, name)]
    assert configure is longconn.configure


def test_the_front_door_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="module 'longconn' has no attribute 'Worker'"):
        _ = longconn.Worker
