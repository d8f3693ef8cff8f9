"""A private PostgreSQL server for the duration of a test session."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

__all__ = ["PostgresServer", "postgres_programs", "running_postgres"]

USER = "seawall"
QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=40", "log_min_messages=fatal")
PATIENCE = 30


class PostgresServer:
    """A cluster in a folder of its own, on a Unix socket and a free loopback port, without a care for durability.

    PostgreSQL refuses to run as root; then it runs as `postgres` or `nobody`.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="seawall-postgres-"))
        self._owner = _unprivileged_user()
        if self._owner is not None:
            shutil.chown(self._folder, self._owner)
        self._process: subprocess.Popen[bytes] | None = None
        self._names = map("test_{}".format, itertools.count())
        self.port = _free_port()

    def initialise(self) -> None:
        """Make the cluster."""
        options = ["--auth", "trust", "--username", USER, "--encoding", "UTF8", "--locale", "C", "--no-sync"]
        self._program("initdb", "--pgdata", str(self._folder / "data"), *options).check_returncode()

    def start(self) -> None:
        """Start, and return when it answers."""
        settings = itertools.chain.from_iterable(("-c", setting) for setting in QUICK)
        place = ["-D", str(self._folder / "data"), "-k", str(self._folder), "-h", "127.0.0.1", "-p", str(self.port)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", *place, *settings], stdout=log, stderr=log, user=self._owner
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), self.connect():
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End the server, cutting off whoever is connected. It can be started again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=PATIENCE)
            self._process = None

    def close(self) -> None:
        """End the server and remove its files."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """A connection beside those that are tested, committing every statement."""
        return psycopg.connect(host="127.0.0.1", port=self.port, user=USER, dbname=database, autocommit=True)

    def create_database(self) -> str:
        """The address of a new, empty database."""
        name = next(self._names)
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def _program(self, name: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._programs / name, *arguments], user=self._owner, capture_output=True, timeout=60, check=False, cwd="/"
        )


@functools.cache
def postgres_programs() -> Path | None:
    """The folder with `initdb` and `postgres`: on PATH, or where Debian puts the newest."""
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    return next(
        (folder for folder in candidates if (folder / "initdb").exists() and (folder / "postgres").exists()), None
    )


@contextlib.contextmanager
def running_postgres(programs: Path) -> Iterator[PostgresServer]:
    """A started server, ended on exit."""
    server = PostgresServer(programs)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.close()


def _version(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdigit() else 0


def _unprivileged_user() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
