"""`flask resilience`: circuits and rate limits of all workers and hosts, from a terminal.

    flask --app app resilience circuits            every circuit in a table
    flask --app app resilience circuits payments   one, worker by worker
    flask --app app resilience limiters            every rate limiter
    flask --app app resilience open payments --reason "paying twice" --for 10m
    flask --app app resilience watch               a table that follows

Everything goes over HTTP to the admin listener, with the admin token, so it shows and moves what the admin page does, whoever
starts it. Where that is: `--url` or RESILIENCE_ADMIN_URL; otherwise the admin port of the application on this machine. The
token: RESILIENCE_ADMIN_TOKEN, `--token-file`, or the application's own.
"""

from __future__ import annotations

import difflib
import getpass
import http.client
import json
import re
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import click
from flask.cli import NoAppException, ScriptInfo

__all__ = ["AdminClient", "resilience", "table_of_circuits", "table_of_limiters"]

TIMEOUT: Final = 5.0
"""Seconds to wait for an answer; workers that do not answer each other are given one of them."""
LINES_OF_EVENTS: Final = 8
LONGEST_TERM: Final = 2_592_000
"""Seconds for which something may hold that is ordered for a time: 30 days."""
NARROWEST: Final = 12
"""Characters that a cell keeps at least where a table is wider than the terminal."""

_COLOURS: Final[Mapping[str, str]] = {
    "closed": "green",
    "open": "red",
    "half-open": "yellow",
    "forced-open": "magenta",
    "forced-closed": "cyan",
    "disabled": "bright_black",
    "metrics-only": "blue",
}
_TO_START_OF_SCREEN: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_OTHER_SCREEN: Final = "\x1b[?1049h\x1b[?25l"
_OWN_SCREEN: Final = "\x1b[?25h\x1b[?1049l"

Document = Mapping[str, Any]


class AdminRefused(click.ClickException):
    """The admin listener was not reached (`status` 0), or said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class AdminClient:
    """The admin endpoint at `url`, such as http://127.0.0.1:8001 (its path is /admin unless it says another).

    `author` is who is named in the audit log. Raises `click.UsageError` for a URL or a token that is none.
    """

    def __init__(self, url: str, token: str, *, author: str = "", timeout: float = TIMEOUT) -> None:
        wrong = click.UsageError(f"{url!r} is no address: use http(s)://<host>:<port> of the admin listener")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise wrong from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise wrong
        if not (token.isascii() and token.isprintable()):
            raise click.UsageError("this is no admin token: it has letters that no header field can carry")
        self._parts = parts
        self._prefix = parts.path.rstrip("/") or "/admin"
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if author:
            self._headers["X-Resilience-Author"] = _in_a_field(author)
        self._timeout = timeout

    def get(self, *path: str, **query: object) -> Any:
        """What is at `path`, as JSON. Raises `AdminRefused`."""
        return self._ask("GET", path, query, None)

    def post(self, *path: str, **members: object) -> Any:
        """What the endpoint answers to an order. Members that are None are left out. Raises `AdminRefused`."""
        body = json.dumps({name: value for name, value in members.items() if value is not None})
        return self._ask("POST", path, {}, body)

    def _ask(self, method: str, path: Sequence[str], query: Mapping[str, object], body: str | None) -> Any:
        target = "/".join((self._prefix, *(quote(part) for part in path)))
        given = {name: value for name, value in query.items() if value is not None}
        headers = {**self._headers, "Content-Type": "application/json"} if body is not None else self._headers
        connection = self._connection()
        try:
            connection.request(method, f"{target}?{urlencode(given)}" if given else target, body, headers)
            response = connection.getresponse()
            status, text = response.status, response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise AdminRefused(0, f"{self._place} does not answer: {reason}. Is it the admin listener?") from None
        finally:
            connection.close()
        return self._document(status, text)

    def _document(self, status: int, text: bytes) -> Any:
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if status == http.client.OK:
            if isinstance(document, dict) and isinstance(document.get("workers"), dict):
                return document
            raise AdminRefused(
                status, f"{self._place} answers, but not as an admin endpoint does: say where that is with --url"
            )
        said = document.get("detail") or document.get("title") if isinstance(document, dict) else None
        raise AdminRefused(status, _advice(status, self._place, _printable(str(said or ""))))

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname, self._parts.port
        assert host is not None
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=self._timeout)

    @property
    def _place(self) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc.rpartition('@')[2]}"


def _in_a_field(text: str) -> str:
    """`text` as a header field carries it: plain where it can be, else as RFC 8187 says, which the endpoint reads."""
    is_plain = text.isascii() and text.isprintable() and not text.lower().startswith("utf-8'")
    return text if is_plain else f"UTF-8''{quote(text, safe='')}"


def _advice(status: int, place: str, said: str) -> str:
    if status == http.client.UNAUTHORIZED:
        return f"{place} does not take this token: set RESILIENCE_ADMIN_TOKEN to the one that the service has"
    if status == http.client.NOT_FOUND and not said.startswith("no "):
        return f"{place} has no such thing: is it the admin listener, and is the name as listed?"
    return said or f"{place} answered with status {status}"


# -- what is shown -------------------------------------------------------------------------------------------------------


def table_of_circuits(document: Document, *, width: int | None = None) -> list[str]:
    """The lines of a table of circuits, as `GET /admin/circuits` lists them. With a `width` long cells are shortened to fit."""
    rows = [
        (
            circuit["name"],
            circuit["state"],
            _moment(circuit),
            circuit["failures"],
            _rate(circuit["failure_rate"]),
            _rate(circuit["slow_call_rate"]),
            circuit["calls"]["succeeded"],
            circuit["calls"]["failed"],
            circuit["calls"]["not_permitted"],
            _cause(circuit),
        )
        for circuit in document["circuits"]
    ]
    titles = ("circuit", "state", "", "in a row", "failing", "slow", "succeeded", "failed", "refused", "why")
    return _table(titles, rows, width, numbers=range(3, 9), states=(1,)) if rows else ["no circuits"]


def table_of_limiters(document: Document, *, width: int | None = None) -> list[str]:
    """The lines of a table of rate limiters, as `GET /admin/limiters` lists them. With a `width` long cells are shortened."""
    rows = [
        (
            limiter["name"],
            ", ".join(map(_limit, limiter["limits"])),
            limiter["allowed"],
            limiter["denied"],
            limiter["shadow_denied"],
            limiter["waited"],
            _override(limiter),
            ", ".join(f"{one['key']} ({one['refused']})" for one in limiter.get("top", ())[:3]),
        )
        for limiter in document["limiters"]
    ]
    titles = ("limiter", "limits", "allowed", "refused", "in shadow", "waited", "override", "refused most")
    return _table(titles, rows, width, numbers=range(2, 6)) if rows else ["no rate limiters"]


def _table_of_workers(circuit: Document, width: int | None) -> list[str]:
    rows = [
        (
            _worker(each["worker"]),
            each["state"],
            each["failures"],
            *(each[kind] for kind in ("succeeded", "failed", "ignored", "not_permitted")),
        )
        for each in circuit["by_worker"]
    ]
    titles = ("worker", "state", "in a row", "succeeded", "failed", "ignored", "refused")
    return _table(titles, rows, width, numbers=range(2, 7), states=(1,))


def _table_of_events(document: Document, most: int, width: int | None) -> list[str]:
    rows = [
        (
            _clock(event["at"]),
            event["policy"],
            event["type"].lower().replace("_", " "),
            _event(event),
            _worker(event["worker"]),
        )
        for event in document["events"][-most:]
    ]
    return _table(("at", "policy", "what", "", "worker"), rows, width) if rows else ["no events"]


def _table_of_audit(document: Document, most: int, width: int | None) -> list[str]:
    rows = [
        (
            _clock(entry["at"]),
            entry["author"],
            entry["action"],
            entry["target"],
            entry["outcome"],
            "" if entry["ttl"] is None else f"for {entry['ttl']:g} s",
            entry["reason"],
            "; ".join([*filter(None, [entry["detail"]]), *(f"not reached: {each}" for each in entry["unreached"])]),
        )
        for entry in reversed(document["entries"][:most])
    ]
    titles = ("at", "who", "what", "to", "outcome", "", "why", "")
    return _table(titles, rows, width) if rows else ["nobody has changed anything since these workers began"]


def _table(
    titles: Sequence[str],
    rows: Sequence[Sequence[object]],
    most: int | None,
    *,
    numbers: Iterable[int] = (),
    states: Iterable[int] = (),
) -> list[str]:
    """Columns as wide as they need to be; where that is more than `most`, the widest give way. Those of `numbers` are aligned
    right, those of `states` have their colour."""
    texts = [[_printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *texts, strict=True)]
    if most is not None:
        while sum(widths) + 2 * (len(widths) - 1) > most and max(widths) > NARROWEST:
            widths[widths.index(max(widths))] -= 1
        texts = [[_shortened(cell, width) for cell, width in zip(row, widths, strict=True)] for row in texts]
    right, coloured = set(numbers), set(states)

    def line(cells: Sequence[str]) -> str:
        placed = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(
            click.style(cell, fg=_COLOURS.get(cell.strip()), bold=True) if index in coloured else cell
            for index, cell in enumerate(placed)
        ).rstrip()

    return [line(titles), *(line(cells) for cells in texts)]


def _moment(circuit: Document) -> str:
    state, expires = circuit["state"], circuit.get("expires_in")
    in_it = circuit["states"].get(state, 0)
    workers = sum(circuit["states"].values())
    said = [f"in {in_it} of {workers}"] if in_it < workers else []
    if state == "open":
        said.append(f"probe in {circuit['retry_after']:.0f} s" if circuit["retry_after"] else "probe due")
    elif expires is not None:
        said.append(f"for {expires:.0f} s more")
    return ", ".join(said)


def _cause(circuit: Document) -> str:
    sharing = circuit.get("sharing") or {}
    votes = sharing.get("votes") or ()
    said = [f"{len(votes)} of {sharing.get('quorum', 1)} votes: {', '.join(votes)}"] if votes else []
    if circuit["state"] != "closed" or circuit["author"]:
        said.insert(0, f"{circuit['cause'] or ''}{_by(circuit['author'])}{_because(circuit['reason'])}")
    return "; ".join(filter(None, said))


_LIMIT: Final = re.compile(r"(\d+) per (1|60|3600|86400) s\b(.*)")
_UNITS: Final = {"1": "second", "60": "minute", "3600": "hour", "86400": "day"}


def _limit(text: str) -> str:
    """A limit as people say it: 10 per hour, not per 3600 s."""
    found = _LIMIT.fullmatch(text)
    return f"{found[1]} per {_UNITS[found[2]]}{found[3]}" if found else text


def _override(limiter: Document) -> str:
    override = limiter.get("override")
    if not override:
        return ""
    left = override.get("expires_in")
    return f"{override['limits']}{'' if left is None else f' for {left:.0f} s more'}"


def _event(event: Document) -> str:
    if event["type"] == "STATE_TRANSITION":
        moved = f"{event['old']} to {event['new']}: {event['cause']}"
        return f"{moved}{_by(event['author'])}{_because(event['reason'])}"
    if event["type"] == "REFUSED":
        return f"{event['count']} of {event['key']}"
    if event["type"] == "OVERRIDE":
        instead = f"{event['limits']} instead" if event["limits"] else "its own limits again"
        return f"{instead}{_by(event['author'])}{_because(event['reason'])}"
    told = (event.get(name) for name in ("error", "rule", "limits", "mode", "key", "count"))
    return str(next((value for value in told if value not in (None, "")), ""))


def _by(author: str) -> str:
    return f" by {author}" if author else ""


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _rate(percent: float) -> str:
    return "" if percent < 0 else f"{percent:.1f} %"


def _worker(worker: Document) -> str:
    return f"{worker['host']} {worker['pid']}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _printable(text: str) -> str:
    # Keys of limits are what callers made of them: none of it may speak to the terminal.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _width() -> int | None:
    """Characters of a line of the terminal; None where the output goes elsewhere, which takes any."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _missing(document: Document) -> list[str]:
    workers = document["workers"]
    lines = [f"no answer from {', '.join(map(_worker, workers['unreached']))}"] if workers["unreached"] else []
    return [*lines, *([_printable(workers["problem"])] if workers.get("problem") else [])]


# -- commands ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Address:
    """What the options of the group say; what they leave open is asked of the application when it is needed."""

    url: str | None
    token: str | None
    author: str
    script: ScriptInfo | None

    def client(self) -> AdminClient:
        url, token = self.url, self.token
        if not (url and token):
            known_url, known_token = self._of_application()
            url, token = url or known_url, token or known_token
        if not url:
            raise click.UsageError(
                "say where the admin endpoint is, with --url http://127.0.0.1:8001 or RESILIENCE_ADMIN_URL. Where the "
                "application is served by `flask run` that is --url http://127.0.0.1:5000. It is known by itself only "
                "where the application has a listener for it alone (RESILIENCE_ADMIN_PORT)"
            )
        if not token:
            raise click.UsageError(
                "the admin endpoint needs its token: set RESILIENCE_ADMIN_TOKEN, or use --token-file. "
                "The service needs the same one: without a token it has no admin endpoint"
            )
        return AdminClient(url, token, author=self.author)

    def _of_application(self) -> tuple[str | None, str | None]:
        if self.script is None:
            return None, None
        try:
            app = self.script.load_app()
        except NoAppException:
            return None, None
        application = app.extensions.get("resilience")
        if application is None:
            return None, None
        port = application.options.admin_port
        return (f"http://127.0.0.1:{port}" if port else None), application.options.admin_token


@click.group()
@click.option(
    "--url", envvar="RESILIENCE_ADMIN_URL", help="Where the admin listener is, such as http://127.0.0.1:8001."
)
@click.option("--token", envvar="RESILIENCE_ADMIN_TOKEN", help="The admin token. Others see it here: use the variable.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="RESILIENCE_ADMIN_TOKEN_FILE",
    help="A file that holds the admin token.",
)
@click.option("--author", help="Who is named in the audit log. Default: the user of this terminal.")
@click.pass_context
def resilience(
    context: click.Context, url: str | None, token: str | None, token_file: Path | None, author: str | None
) -> None:
    """Circuits and rate limits of all workers and hosts."""
    if token_file is not None and not token:
        token = token_file.read_text(encoding="utf-8").strip()
    context.obj = _Address(url, token, _author() if author is None else author, context.find_object(ScriptInfo))


_TIME: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h|d|)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


def _time(said: str) -> float:
    """Seconds, or a number with a unit. Raises `click.BadParameter`."""
    found = _TIME.fullmatch(said.strip().lower())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_TERM:
        raise click.BadParameter(
            f"{said!r} is no time: seconds, or such as 90s, 10m, 1h or 2d, above 0 and at most 30d"
        )
    return seconds


def _author() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""  # a container may have no name for its user


_as_json = click.option("--json", "as_json", is_flag=True, help="What the endpoint answered, instead of a table.")
_reason = click.option("--reason", default="", help="Why: kept with it, and in the audit log.")
_TERM: Final = "For how long: seconds, or such as 90s, 10m, 1h or 2d; at most 30d."


@contextmanager
def _near(client: AdminClient, kind: str, name: str) -> Iterator[None]:
    """Names those that are like it where there is none of this name."""
    try:
        yield
    except AdminRefused as refusal:
        if refusal.status != http.client.NOT_FOUND or not refusal.message.startswith("no "):
            raise
        names = [str(each["name"]) for each in client.get(kind)[kind]]
        like = _alike(name, names)
        hint = f"did you mean {' or '.join(map(repr, like))}?" if like else f"`resilience {kind}` lists the names"
        raise AdminRefused(refusal.status, _printable(f"no {kind[:-1]} is named {name!r}: {hint}")) from None


def _alike(name: str, names: Sequence[str]) -> list[str]:
    """Those of which it is a part (a limiter is called after the application, too), then those that are written alike."""
    wanted = name.lower()
    parts = [each for each in names if wanted and wanted in each.lower()]
    parts.sort(key=lambda each: (not each.lower().endswith(f".{wanted}"), len(each)))
    folded = {each.lower(): each for each in names}
    alike = [folded[each] for each in difflib.get_close_matches(wanted, folded)]
    ends = {each.lower().rpartition(".")[2]: each for each in names}
    alike += [ends[each] for each in difflib.get_close_matches(wanted, ends, cutoff=0.65)]
    return list(dict.fromkeys([*parts, *alike]))[:3]


def _print_limiter(document: Document) -> None:
    _print(document, [*table_of_limiters({"limiters": [document["limiter"]]}, width=_width()), *_missing(document)])


@resilience.command()
@click.argument("name", required=False)
@_as_json
@click.pass_obj
def circuits(address: _Address, name: str | None, as_json: bool) -> None:
    """List every circuit, or show one, worker by worker."""
    client, width = address.client(), _width()
    if name:
        with _near(client, "circuits", name):
            document = client.get("circuits", name)
    else:
        document = client.get("circuits")
    listed = {"circuits": [document["circuit"]]} if name else document
    lines = [*table_of_circuits(listed, width=width), *_missing(document)]
    if name:
        lines += ["", *_table_of_workers(document["circuit"], width)]
    _print(document, lines, as_json=as_json)


@resilience.command()
@_as_json
@click.pass_obj
def limiters(address: _Address, as_json: bool) -> None:
    """List every rate limiter."""
    document = address.client().get("limiters")
    _print(document, [*table_of_limiters(document, width=_width()), *_missing(document)], as_json=as_json)


@resilience.command()
@click.option("--policy", help="Those of one circuit or limiter only.")
@click.option("--most", type=click.IntRange(1, 1_000), default=50, show_default=True, help="How many, the latest.")
@_as_json
@click.pass_obj
def events(address: _Address, policy: str | None, most: int, as_json: bool) -> None:
    """List what happened lately."""
    document = address.client().get("events", limit=most, policy=policy)
    _print(document, [*_table_of_events(document, most, _width()), *_missing(document)], as_json=as_json)


def _move(action: str, summary: str, *, for_a_time: bool) -> None:
    def command(address: _Address, name: str, reason: str, seconds: float | None = None) -> None:
        with _near(client := address.client(), "circuits", name):
            document = client.post("circuits", name, action, reason=reason, ttl=seconds)
        listed = {"circuits": [document["circuit"]]}
        _print(document, [*table_of_circuits(listed, width=_width()), *_missing(document)])

    made: Callable[..., Any] = click.argument("name")(_reason(click.pass_obj(command)))
    if for_a_time:
        made = click.option("--for", "seconds", type=_time, metavar="TIME", help=_TERM)(made)
    resilience.command(action, help=summary)(made)


_move("open", "Refuse every call, for some time or until somebody moves it.", for_a_time=True)
_move("close", "Let calls pass: for some time whatever comes of them, otherwise as it finds itself.", for_a_time=True)
_move("half-open", "Let probes pass.", for_a_time=False)
_move("disable", "Let calls pass and count nothing, for some time or until somebody moves it.", for_a_time=True)
_move("metrics-only", "Let calls pass and count them, for some time or until somebody moves it.", for_a_time=True)
_move("reset", "Close a circuit and forget what it has counted.", for_a_time=False)


@resilience.command()
@click.argument("name")
@click.argument("limits")
@click.option("--for", "seconds", type=_time, metavar="TIME", required=True, help=_TERM)
@click.option("--burst", type=click.IntRange(1), help="Calls at once, of each of the limits. Default: as they say.")
@_reason
@click.pass_obj
def override(address: _Address, name: str, limits: str, seconds: float, burst: int | None, reason: str) -> None:
    """Let other LIMITS, such as 50/second, hold for a limiter for some time."""
    with _near(client := address.client(), "limiters", name):
        document = client.post("limiters", name, "override", limits=limits, burst=burst, ttl=seconds, reason=reason)
    _print_limiter(document)


@resilience.command()
@click.argument("name")
@_reason
@click.pass_obj
def restore(address: _Address, name: str, reason: str) -> None:
    """Let a limiter's own limits hold again."""
    client = address.client()
    with _near(client, "limiters", name):
        stood = [each["override"] for each in client.get("limiters")["limiters"] if each["name"] == name]
        document = client.post("limiters", name, "restore", reason=reason)
    if stood == [None]:
        click.echo(f"{_printable(name)}: nothing to restore, its own limits held already", err=True)
    _print_limiter(document)


@resilience.command()
@click.argument("name")
@click.argument("key")
@_reason
@click.pass_obj
def fill(address: _Address, name: str, key: str, reason: str) -> None:
    """Fill the bucket that KEY, such as an address, has under a limiter."""
    with _near(client := address.client(), "limiters", name):
        document = client.post("limiters", name, "reset", key=key, reason=reason)
    _print_limiter(document)


@resilience.command()
@click.option("--most", type=click.IntRange(1, 200), default=50, show_default=True, help="How many, the latest.")
@_as_json
@click.pass_obj
def audit(address: _Address, most: int, as_json: bool) -> None:
    """List who did what lately."""
    document = address.client().get("audit")
    _print(document, [*_table_of_audit(document, most, _width()), *_missing(document)], as_json=as_json)


@resilience.command()
@click.option(
    "--every", type=click.FloatRange(0.2, 3_600), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option("--times", type=click.IntRange(1), help="How many looks. Default: until Ctrl-C.")
@click.pass_obj
def watch(address: _Address, every: float, times: int | None) -> None:
    """Follow circuits, limiters and events until Ctrl-C."""
    client = address.client()
    to_screen = sys.stdout.isatty()
    if to_screen:
        click.echo(_OTHER_SCREEN, nl=False)
    try:
        _watch(client, every, times, to_screen=to_screen)
    except KeyboardInterrupt:
        return
    finally:
        if to_screen:
            click.echo(_OWN_SCREEN, nl=False)


def _watch(client: AdminClient, every: float, times: int | None, *, to_screen: bool) -> None:
    looked = 0
    while times is None or looked < times:
        if looked:
            time.sleep(every)
        looked += 1
        try:
            lines = _overview(client)
        except AdminRefused as refusal:
            if not _may_pass(refusal.status):
                raise
            lines = [time.strftime("%H:%M:%S"), "", refusal.message]
        if to_screen:
            height = shutil.get_terminal_size().lines - 1
            shown = f"{_CLEAR_LINE}\n".join(lines[: max(1, height)])
            click.echo(f"{_TO_START_OF_SCREEN}{shown}{_CLEAR_LINE}{_CLEAR_BELOW}", nl=False)
        else:
            click.echo("\n".join([*lines, ""]))


def _may_pass(status: int) -> bool:
    """Whether it may go by itself: nobody answers, the endpoint or a proxy has too much to do, or something has failed."""
    return status in (0, http.client.TOO_MANY_REQUESTS) or status >= http.client.INTERNAL_SERVER_ERROR


def _overview(client: AdminClient) -> list[str]:
    width = _width()
    found, limits = client.get("circuits"), client.get("limiters")
    happened = client.get("events", limit=LINES_OF_EVENTS)
    workers = len(found["workers"]["answered"])
    return [
        f"{time.strftime('%H:%M:%S')}  {workers} worker{'' if workers == 1 else 's'}",
        *_missing(found),
        "",
        *table_of_circuits(found, width=width),
        "",
        *table_of_limiters(limits, width=width),
        "",
        *_table_of_events(happened, LINES_OF_EVENTS, width),
    ]


def _print(document: Any, lines: Sequence[str], *, as_json: bool = False) -> None:
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(lines))


if __name__ == "__main__":
    resilience.main(prog_name="python -m resilience.adapters.terminal")
