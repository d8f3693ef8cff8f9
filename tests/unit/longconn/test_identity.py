"""Who is at the other end."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import pytest

from longconn.identity import Identity


@pytest.mark.parametrize("end", [None, 0, 1.5, -5])
def test_its_end_is_a_moment_or_never(end: float | None) -> None:
    assert end == Identity("ada", expires_at=end).expires_at


@pytest.mark.parametrize(
    ("end", "error"),
    [(inf, ValueError), (nan, ValueError), ("soon", TypeError), (datetime(2026, 1, 1, tzinfo=UTC), TypeError)],
)
def test_an_end_that_is_no_moment_is_refused_where_it_is_said(end: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="expires_at"):
        Identity("ada", expires_at=end)
