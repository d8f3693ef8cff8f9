"""What `make run` starts: the service, its admin listener and a demo backend, ready to be tried.

Whatever is not configured is made: secrets for this run, the database, a user to sign in as. For development; in
production gunicorn is started by itself, so that nothing is made up there.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import resource
import secrets
import socket
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from service import logs
from service.administration import Accounts, migrate_database, opened_accounts
from service.errors import ServiceError
from service.processors import available_processors
from service.services.users import parse_new_user
from service.settings import Settings, SettingsError
from service.supervisor import ChildEnded, Interrupted, Program, Supervisor, interruptible

__all__ = ["CannotStart", "Plan", "instructions", "make_plan", "run"]

ROOT: Final = Path(__file__).resolve().parent.parent
WORKPLACE: Final = Path("var")
PASSWORD_FILE: Final = WORKPLACE / "demo-password"
NEW_PASSWORD_FILE: Final = WORKPLACE / "demo-password.new"
DEMO_LOG: Final = WORKPLACE / "demo-backend.log"
DEMO_HOST: Final = "127.0.0.1"
DEMO_PORT: Final = "8002"
USER: Final = "demo"

MADE_SECRETS: Final = ("token_secret", "resilience_admin_token")

FOR_THE_DEMO: Final = re.compile(r"PATH|HOME|TZ|TMPDIR|LANG|VIRTUAL_ENV|(LC_|PYTHON|COVERAGE).*")
"""The variables that any program may need. The others may hold secrets."""

READY_WITHIN: Final = 30.0
READY_POLL: Final = 0.05
CHILD_POLL: Final = 0.2
PATIENCE_BEYOND_GRACE: Final = 3.0
DEMO_PATIENCE: Final = 3.0
PORTS_TRIED: Final = 100


class CannotStart(Exception):
    """The service cannot be started here. The message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run: the settings, the environment that leads a child to them, and the demo backend's port (None: the
    settings name backends, so none is needed)."""

    settings: Settings
    environment: Mapping[str, str]
    demo_port: int | None

    @property
    def public_url(self) -> str:
        """Where the service answers, as seen from this machine."""
        return _url(self.settings.host, self.settings.port)

    @property
    def admin_url(self) -> str:
        """Where the admin listener answers."""
        return _url(self.settings.host, self.settings.admin_port)

    @property
    def demo_address(self) -> str:
        """Host and port of the demo backend."""
        return f"{DEMO_HOST}:{self.demo_port}"


def run(environ: Mapping[str, str] = os.environ) -> int:
    """Start everything, say how to try it, and wait for a signal or for something to end. The exit status.

    Works in the current directory: reads ``config/`` and keeps its files in ``var/``.
    """
    supervisor = Supervisor()
    try:
        with interruptible():
            try:
                _run(supervisor, environ)
            finally:
                supervisor.stop()
    except Interrupted:
        print("\nSeawall has stopped.", flush=True)
        return 0
    except (CannotStart, ChildEnded, SettingsError, ServiceError, OSError) as error:
        print(f"seawall does not run: {error}", file=sys.stderr, flush=True)
    return 1


def make_plan(environ: Mapping[str, str]) -> Plan:
    """What to run, given an environment. Raises `SettingsError` for a bad configuration, `CannotStart` for one that is
    not for development."""
    made = {name: secrets.token_urlsafe(32) for name in MADE_SECRETS}
    settings = Settings.load(environ, fallbacks=made)
    used = {name.upper(): secret for name, secret in made.items() if _is(getattr(settings, name), secret)}
    environment = {**environ, **used}
    if settings.environment == "production":
        raise CannotStart(
            "this is for development, and SEAWALL_ENVIRONMENT is production; there, start "
            "`python -m gunicorn -c gunicorn.conf.py` after `python -m service migrate`"
        )
    if settings.backends:
        return Plan(settings, environment, None)
    demo_port = _port_number("DEMO_PORT", environ.get("DEMO_PORT") or DEMO_PORT)
    environment["BACKENDS__demo"] = f"http://{DEMO_HOST}:{demo_port}"
    return Plan(Settings.load(environment), environment, demo_port)


def _is(configured: SecretStr | None, secret: str) -> bool:
    return configured is not None and configured.get_secret_value() == secret


def instructions(plan: Plan, password: str | None) -> str:
    """What to tell whoever started this: where things are, and commands to try, ready to be pasted into a shell.

    `password` is None when the demo user has one that is not known here.
    """
    return "\n\n".join([_addresses(plan, password), "Try, in another terminal:", *_commands(plan, password)])


def _run(supervisor: Supervisor, environ: Mapping[str, str]) -> None:
    plan = make_plan(environ)
    _check_ports(plan)
    _raise_file_limit()
    _make_workplace()
    logs.configure(level="warning", style="console")
    print("Seawall is starting ...", flush=True)
    migrate_database(plan.settings)
    with opened_accounts(plan.settings) as accounts:
        password = _prepare_user(accounts)
    if plan.demo_port is not None:
        supervisor.start(_demo_backend(plan))
    supervisor.start(_service(plan))
    _wait_until_ready(plan, supervisor)
    print(f"\n{instructions(plan, password)}\n\nCtrl-C stops everything.\n", flush=True)
    while True:
        supervisor.check()
        time.sleep(CHILD_POLL)


# -- what has to be there first ------------------------------------------------------------------------------------------


def _check_ports(plan: Plan) -> None:
    """Raise `CannotStart` for a port that cannot be had, naming the setting that chooses another."""
    wanted = [
        ("PORT", plan.settings.host, plan.settings.port),
        ("ADMIN_PORT", plan.settings.host, plan.settings.admin_port),
    ]
    if plan.demo_port is not None:
        wanted.append(("DEMO_PORT", DEMO_HOST, plan.demo_port))
    with contextlib.ExitStack() as held:  # all at once, so that two that are the same are noticed
        for variable, host, port in wanted:
            try:
                held.enter_context(_bound(host, port))
            except OSError as error:
                raise CannotStart(_port_advice(variable, host, port, error)) from None


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _port_advice(variable: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use: set {variable}=..., e.g. {variable}={_free_port(host, port)} make run"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} may not be opened by this user: set {variable}=..., e.g. {variable}=8010 make run"
    return f"HOST={host} cannot be listened on ({error.strerror}): set HOST=..., e.g. HOST=127.0.0.1 make run"


def _free_port(host: str, taken: int) -> int:
    for port in range(taken + 10, min(taken + PORTS_TRIED, 65_536), 10):
        with contextlib.suppress(OSError), _bound(host, port):
            return port
    return taken + 10 if taken < 65_000 else taken - 10


def _port_number(variable: str, text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535:
        return int(text)
    raise CannotStart(f"{variable} must be a port from 1 to 65535")


def _raise_file_limit() -> None:
    """Each connection is an open file; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems say "unlimited" and do not mean it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_workplace() -> None:
    try:
        WORKPLACE.mkdir(exist_ok=True)
    except OSError as error:
        raise CannotStart(
            f"{WORKPLACE.absolute()} cannot be made ({error.strerror}); start where you may write"
        ) from None


def _prepare_user(accounts: Accounts) -> str | None:
    """The password of the demo user, who is made if need be; None when nobody here knows it."""
    stored = PASSWORD_FILE.read_text().strip() if PASSWORD_FILE.exists() else ""
    if accounts.exists(USER):
        return stored if stored and accounts.has_password(USER, stored) else None
    password = stored or _store_password(secrets.token_urlsafe(12))
    members = {"name": USER, "email": f"{USER}@example.com", "role": "admin", "password": password}
    accounts.add(parse_new_user(members))
    return password


def _store_password(password: str) -> str:
    # Beside its place first, so that an interrupted start leaves no half of it. Readable to this user only.
    NEW_PASSWORD_FILE.unlink(missing_ok=True)
    with os.fdopen(os.open(NEW_PASSWORD_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(password + "\n")
    NEW_PASSWORD_FILE.replace(PASSWORD_FILE)
    return password


# -- what runs -----------------------------------------------------------------------------------------------------------


def _service(plan: Plan) -> Program:
    return Program(
        name="the service",
        command=[sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "service.wsgi:app"],
        environment=plan.environment,
        patience=plan.settings.drain_delay + plan.settings.graceful_timeout + PATIENCE_BEYOND_GRACE,
    )


def _demo_backend(plan: Plan) -> Program:
    options = {
        "--config": "python:service",  # says nothing, where without it the service's own file would be read
        "--bind": plan.demo_address,
        "--worker-class": "gevent",
        "--workers": "1",
        "--keep-alive": "75",
        "--graceful-timeout": "1",
        "--log-level": "warning",
    }
    return Program(
        name="the demo backend",
        command=[
            *(sys.executable, "-m", "gunicorn", "--no-control-socket"),
            *(word for option in options.items() for word in option),
            "service.demo_backend:app",
        ],
        environment={name: value for name, value in plan.environment.items() if FOR_THE_DEMO.fullmatch(name)},
        patience=DEMO_PATIENCE,
        log=DEMO_LOG,
    )


def _wait_until_ready(plan: Plan, supervisor: Supervisor) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while not _is_ready(plan):
        supervisor.check()
        if time.monotonic() > deadline:
            raise CannotStart(
                f"the service was not ready within {READY_WITHIN:g} s; "
                f"{plan.public_url}/readyz?verbose and the lines above say why"
            )
        time.sleep(READY_POLL)


def _is_ready(plan: Plan) -> bool:
    connection = http.client.HTTPConnection(_reachable(plan.settings.host), plan.settings.port, timeout=1)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    return False


def _reachable(host: str) -> str:
    """Where a client on this machine finds what listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - compared with, not bound to


def _url(host: str, port: int) -> str:
    place = _reachable(host)
    return f"http://[{place}]:{port}" if ":" in place else f"http://{place}:{port}"


# -- what is said --------------------------------------------------------------------------------------------------------


def _addresses(plan: Plan, password: str | None) -> str:
    token = plan.settings.resilience_admin_token
    lines = [
        ("service", plan.public_url),
        ("demo page", f"{plan.public_url}/" if plan.settings.has_demo else None),
        ("admin", f"{plan.admin_url}/admin/"),
        ("admin token", token.get_secret_value() if token else "none"),
        ("demo backend", f"http://{plan.demo_address}" if plan.demo_port else None),
        ("user", f"{USER} (admin)"),
        ("password", password or f"chosen earlier; {PASSWORD_FILE} does not hold it"),
    ]
    return "\n".join(["Seawall is running.", "", *(f"  {name:<14}{value}" for name, value in lines if value)])


def _commands(plan: Plan, password: str | None) -> list[str]:
    token = plan.settings.resilience_admin_token
    commands = [
        ("Sign in, and keep the token:", _sign_in(plan, password or "...")),
        ("Read the users with it:", _get(f"{plan.public_url}/api/v1/users", "$TOKEN")),
        _break_and_call(plan),
        (
            "See the circuits:",
            f"ADMIN_TOKEN='{token.get_secret_value() if token else ''}'\n"
            + _get(f"{plan.admin_url}/admin/circuits", "$ADMIN_TOKEN"),
        ),
    ]
    return [
        f"{number}. {title}\n\n{textwrap.indent(command, '   ')}" for number, (title, command) in enumerate(commands, 1)
    ]


def _sign_in(plan: Plan, password: str) -> str:
    return (
        f"TOKEN=$(curl -s {plan.public_url}/api/v1/auth/token \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f"""  -d '{{"username": "{USER}", "password": "{password}"}}' \\\n"""
        """  | sed -n 's/.*"access_token":"\\([^"]*\\)".*/\\1/p')"""
    )


def _get(url: str, token: str) -> str:
    return f'curl -s -H "Authorization: Bearer {token}" \\\n  {url} \\\n  | python3 -m json.tool'


def _break_and_call(plan: Plan) -> tuple[str, str]:
    name = "demo" if plan.demo_port else min(plan.settings.backends)
    calls = plan.settings.backend_fail_max * (plan.settings.web_concurrency or available_processors()) * 4
    loop = (
        f"for n in $(seq {calls}); do\n"
        "  code=$(curl -s -o /dev/null -w '%{http_code}' \\\n"
        '    -H "Authorization: Bearer $TOKEN" \\\n'
        f"    {plan.public_url}/api/v1/backends/{name}/hello)\n"
        '  echo "$code"; [ "$code" = 503 ] && break\n'
        "done"
    )
    if plan.demo_port is None:
        return f"Call the backend {name} in a loop (503: its circuit is open):", loop
    return (
        "Break the demo backend, and call it until its circuit opens (503):",
        f"curl -s -X POST '{plan.demo_address}/settings?failure_rate=1'\n{loop}",
    )
