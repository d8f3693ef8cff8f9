"""PostgreSQL: greenlets that wait, are interrupted or are refused, and a server that goes away."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from service.data.database import Database, open_database
from service.data.migrate import migrate
from service.data.users import SqlUserRepository
from service.errors import DatabaseBusy, DatabaseFailed
from tests.support.database import migrated, settings_for
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.postgres


def run(scenario: str, url: str) -> Any:
    """What came of the scenario, which a patched process played."""
    migrate(url)
    program = [sys.executable, "-W", "error", "-m", "tests.support.postgres_scenarios", scenario, url]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.create_database()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = migrated(url, database_timeout=0.3)
    yield database
    database.close()


def test_greenlets_wait_for_the_database_at_the_same_time(url: str) -> None:
    assert run("waits_overlap", url)["took"] < 1.0


def test_who_gets_no_connection_in_time_is_refused(url: str) -> None:
    (first, _), (second, _), (third, waited) = run("exhausted_pool", url)["outcomes"]
    assert ["done", "done", "DatabaseBusy"] == [first, second, third]
    assert 0.3 < waited < 0.8


def test_a_statement_that_takes_too_long_is_refused_and_the_next_is_not(url: str) -> None:
    result = run("slow_statement", url)
    (slow, took), (following, _) = result["slow"], result["next"]
    assert ("DatabaseBusy", "done") == (slow, following)
    assert took < 1.0


def test_a_ping_keeps_to_its_own_time(url: str) -> None:
    ending, took = run("ping_in_time", url)["ping"]
    assert "DatabaseBusy" == ending
    assert took < 0.5


def test_interrupted_statements_leave_every_connection_fit_for_use(url: str) -> None:
    result = run("interruptions", url)
    assert 50 < result["interrupted"] < 400
    assert (True, True, 0) == (result["echoes"], result["whole"], result["lent"])


def test_two_admins_who_demote_each_other_at_once_leave_one(url: str) -> None:
    assert [["Conflict", "done"]] * 20 == run("mutual_demotion", url)["endings"]


def test_psycopg_imported_before_patching_is_refused_with_the_reason(url: str) -> None:
    program = f"""
import psycopg
from gevent import monkey
monkey.patch_all()
from service.data.database import open_database
from tests.support.database import settings_for
try:
    open_database(settings_for({url!r}))
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "import it after gevent.monkey.patch_all()" in done.stdout


def test_a_row_locked_by_another_session_refuses_the_write_in_time(
    postgres: PostgresServer, url: str, database: Database
) -> None:
    users = SqlUserRepository(database)
    ann = users.add(name="ann", email="ann@example.com", role="member", password_hash="-")
    with postgres.connect(url.rpartition("/")[2]) as outsider, outsider.transaction():
        outsider.execute("UPDATE users SET version = version")
        with pytest.raises(DatabaseBusy) as caught:
            users.change(ann.id, None, {"name": "eve"})
    assert 1.0 == caught.value.retry_after
    assert users.change(ann.id, None, {"name": "eve"}) is not None


def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseFailed):
        database.read(lambda connection: connection.execute(text("DELETE FROM users")))


def test_options_in_the_address_are_kept_beside_the_timeouts(url: str) -> None:
    migrate(url)
    database = open_database(settings_for(f"{url}?options=-c%20geqo%3Doff", database_timeout=0.7))
    names = ("geqo", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    shown = database.read(lambda connection: [connection.scalar(text(f"SHOW {name}")) for name in names])
    database.close()
    assert ["off", "700ms", "700ms", "700ms"] == shown


def test_a_database_that_was_never_migrated_says_how_to(url: str) -> None:
    database = open_database(settings_for(url))
    with pytest.raises(DatabaseFailed, match="python -m service migrate"):
        database.ping(1.0)
    database.close()


def test_a_server_that_comes_back_is_used_again(postgres: PostgresServer, database: Database) -> None:
    database.ping(1.0)
    postgres.stop()
    with pytest.raises(DatabaseFailed):
        database.ping(1.0)
    postgres.start()
    database.ping(1.0)


def test_a_restart_while_nobody_asked_costs_no_request(postgres: PostgresServer, database: Database) -> None:
    database.ping(1.0)
    postgres.stop()
    postgres.start()
    database.ping(1.0)
