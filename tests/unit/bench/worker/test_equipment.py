"""The pinned peers."""

from __future__ import annotations

import pytest

from bench.worker.equipment import HERE, pinned


def test_pins_are_read_comments_aside() -> None:
    assert {"uwsgi": "2.0", "a": "1"} == pinned("# servers\nuWSGI==2.0  # compiled\n\na==1\n")


def test_a_line_without_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'gevent>=1' pins no version"):
        pinned("gevent>=1")


def test_the_peers_are_pinned() -> None:
    assert {"bjoern", "granian", "tornado", "uwsgi", "waitress"} == set(
        pinned((HERE / "peers" / "requirements.txt").read_text(encoding="utf-8"))
    )
