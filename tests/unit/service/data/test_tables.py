"""Column types: moments keep their meaning in a database without time zones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from sqlalchemy.dialects import postgresql, sqlite

from service.data.tables import UNIQUE_FIELDS, UtcDateTime, metadata

SQLITE = sqlite.dialect()
POSTGRES = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
OFFSETS = some.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
FIRST, LAST = datetime(1900, 1, 2), datetime(2100, 1, 1)  # noqa: DTZ001 - hypothesis adds the zones
MOMENTS = some.datetimes(FIRST, LAST, timezones=OFFSETS)


@settings(deadline=None)
@given(MOMENTS)
def test_a_moment_comes_back_as_the_same_moment_in_utc(moment: datetime) -> None:
    bound = UtcDateTime().process_bind_param(moment, SQLITE)
    assert bound is not None
    for stored, dialect in ((bound.replace(tzinfo=None), SQLITE), (bound.astimezone(moment.tzinfo), POSTGRES)):
        result = UtcDateTime().process_result_value(stored, dialect)
        assert (moment, UTC) == (result, result and result.tzinfo)


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use datetime\.now\(UTC\)"):
        UtcDateTime().process_bind_param(FIRST, SQLITE)


def test_no_moment_stays_no_moment() -> None:
    assert UtcDateTime().process_bind_param(None, SQLITE) is None
    assert UtcDateTime().process_result_value(None, SQLITE) is None


def test_every_unique_index_has_a_field_to_blame() -> None:
    indexes = {index.name for table in metadata.tables.values() for index in table.indexes if index.unique}
    assert indexes == set(UNIQUE_FIELDS)
