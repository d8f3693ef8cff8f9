"""What greenlets do to PostgreSQL, in a process that is really monkey-patched.

Started as a program by the integration tests, with the name of a scenario and the address of a migrated database.
Prints what came of it as one JSON object.
"""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - everything below is imported patched
import functools
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from sqlalchemy import text

from service.data.database import Database, open_database
from service.data.postgres import PostgresDatabase
from service.data.users import SqlUserRepository
from service.errors import ServiceError
from tests.support.database import settings_for

POOL = 5


def sleep_in_database(database: Database, seconds: float) -> None:
    """Keep a connection busy."""
    database.read(lambda connection: connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds}).all())


def outcome_of(function: Callable[[], object]) -> tuple[str, float]:
    """How a call ended, and how long it took."""
    started = time.perf_counter()
    try:
        function()
    except ServiceError as error:
        return type(error).__name__, time.perf_counter() - started
    return "done", time.perf_counter() - started


def waits_overlap(url: str) -> dict[str, Any]:
    """Five greenlets wait for the database at the same time."""
    database = open_database(settings_for(url, database_pool_size=POOL))
    started = time.perf_counter()
    gevent.joinall([gevent.spawn(sleep_in_database, database, 0.3) for _ in range(POOL)], raise_error=True)
    return {"took": time.perf_counter() - started}


def exhausted_pool(url: str) -> dict[str, Any]:
    """One more greenlet than there are connections."""
    database = open_database(settings_for(url, database_pool_size=1, database_timeout=0.4))
    database.ping(1.0)
    first = gevent.spawn(outcome_of, lambda: sleep_in_database(database, 0.3))
    time.sleep(0.1)
    second = gevent.spawn(outcome_of, lambda: sleep_in_database(database, 0.3))
    time.sleep(0.05)
    third = gevent.spawn(outcome_of, lambda: sleep_in_database(database, 0.3))
    return {"outcomes": [job.get() for job in (first, second, third)]}


def slow_statement(url: str) -> dict[str, Any]:
    """A statement that would take longer than it may, then one that does not."""
    database = open_database(settings_for(url, database_timeout=0.3))
    return {
        "slow": outcome_of(lambda: sleep_in_database(database, 5)),
        "next": outcome_of(lambda: sleep_in_database(database, 0)),
    }


def ping_in_time(url: str) -> dict[str, Any]:
    """A ping while every connection is busy."""
    database = open_database(settings_for(url, database_pool_size=1))
    busy = gevent.spawn(sleep_in_database, database, 1.0)
    time.sleep(0.1)
    result = {"ping": outcome_of(lambda: database.ping(0.2))}
    busy.get()
    return result


def interruptions(url: str) -> dict[str, Any]:
    """Reads and writes interrupted at random moments; then all connections must be fit for use, with nothing mixed up."""
    database = open_database(settings_for(url, database_pool_size=POOL, database_timeout=2.0))
    assert isinstance(database, PostgresDatabase)
    users = SqlUserRepository(database)
    numbers = itertools.count()
    interrupted = 0

    def write() -> None:
        name = f"user{next(numbers)}"
        users.add(name=name, email=f"{name}@example.com", role="member", password_hash="-")

    def one(chance: random.Random) -> int:
        works: list[Callable[[], object]] = [
            write,
            lambda: sleep_in_database(database, 0.02),
            lambda: database.ping(1.0),
        ]
        work = chance.choice(works)
        limit = gevent.Timeout.start_new(chance.uniform(0.0005, 0.03))
        try:
            work()
        except gevent.Timeout:
            return 1
        finally:
            limit.close()
        return 0

    for turn in range(40):
        chance = random.Random(turn)
        jobs = [gevent.spawn(one, chance) for _ in range(POOL * 2)]
        interrupted += sum(job.get() for job in jobs)

    def echo(number: int) -> int:
        return int(database.read(lambda connection: connection.scalar(text("SELECT :n"), {"n": number})))

    echoes = [gevent.spawn(echo, number) for number in range(100)]
    page = users.page(0, 10_000).users
    return {
        "interrupted": interrupted,
        "echoes": [job.get() for job in echoes] == list(range(100)),
        "whole": all(user.email == f"{user.name}@example.com" for user in page),
        "lent": database.lent,
    }


def mutual_demotion(url: str) -> dict[str, Any]:
    """Two admins demote each other, again and again."""
    users = SqlUserRepository(open_database(settings_for(url)))
    pair = [
        users.add(name=name, email=f"{name}@example.com", role="admin", password_hash="-").id for name in ("ann", "ben")
    ]
    endings = []
    for _ in range(20):
        jobs = [
            gevent.spawn(outcome_of, functools.partial(users.change, one, None, {"role": "member"})) for one in pair
        ]
        endings.append(sorted(job.get()[0] for job in jobs))
        for user_id in pair:
            users.change(user_id, None, {"role": "admin"})
    return {"endings": endings}


SCENARIOS = (waits_overlap, exhausted_pool, slow_statement, ping_in_time, interruptions, mutual_demotion)

if __name__ == "__main__":
    scenario = next(scenario for scenario in SCENARIOS if scenario.__name__ == sys.argv[1])
    print(json.dumps(scenario(sys.argv[2])))
