"""`python -m service`: run it, migrate its database, add a user."""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import sys
from collections.abc import Sequence
from typing import get_args

from service import administration, launcher, logs
from service.errors import ServiceError, ValidationFailed
from service.model import Role
from service.services.users import parse_new_user
from service.settings import Settings, SettingsError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says. The exit status: 0, 1 when it failed, 2 when it was not understood."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.command(options)
    except ValidationFailed as error:
        faults = [f"{pointer.removeprefix('/')} {fault}" for pointer, fault in error.fields] or [error.detail]
        print("\n".join(faults), file=sys.stderr)
    except (SettingsError, ServiceError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    else:
        return status
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="start everything for development; Ctrl-C stops it")
    run.set_defaults(command=lambda _: launcher.run())

    migrate = commands.add_parser("migrate", help="bring the database to the schema of this release")
    migrate.set_defaults(command=lambda _: _migrate())

    create = commands.add_parser(
        "create-user", help="add a user", description="Add a user. The password is asked for, or read from a pipe."
    )
    create.add_argument("name", metavar="NAME")
    create.add_argument("email", metavar="EMAIL")
    create.add_argument("--role", choices=get_args(Role), default="member")
    create.set_defaults(command=lambda options: _create_user(options.name, options.email, options.role))
    return parser


def _migrate() -> int:
    before, after = administration.migrate_database(_settings())
    print(
        f"the database is at {after} already" if before == after else f"migrated from {before or 'nothing'} to {after}"
    )
    return 0


def _create_user(name: str, email: str, role: str) -> int:
    settings = _settings()
    new = parse_new_user({"name": name, "email": email, "role": role, "password": _read_password()})
    with administration.opened_accounts(settings) as accounts:
        user = accounts.add(new)
    print(f"added {user.name} ({user.role}) as user {user.id}")
    return 0


def _settings() -> Settings:
    # These commands sign nothing, so they do without the secret.
    secret = os.environ.get("TOKEN_SECRET") or secrets.token_urlsafe(32)
    settings = Settings.load({**os.environ, "TOKEN_SECRET": secret})
    logs.configure(level="warning", style="console")
    return settings


def _read_password() -> str:
    """Never from the command line, which everybody on the machine can read."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise ValidationFailed("The two passwords differ.")
    return password


if __name__ == "__main__":
    sys.exit(main())
