"""Every setting of the worker: one frozen `Settings`, read from the environment and checked before anything is served.

A field `head_timeout` is the variable `LONGCONN_HEAD_TIMEOUT`. An empty variable counts as absent. Whatever is wrong is
reported at once in one `SettingsError`, which names each variable, its value and what is accepted; a name that begins
with `LONGCONN_` and is no setting is wrong too, since a misspelt limit protects nobody. `Settings.describe()` prints
all of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from math import isfinite
from typing import Any, Final, Literal, Self, cast

from longconn.errors import LongConnError

__all__ = ["PREFIX", "Settings", "SettingsError"]

PREFIX: Final = "LONGCONN_"

_DAY: Final = 86_400
_WHOLE: Final = re.compile(r"[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?|\.[0-9]{1,9}")
_SIZE: Final = re.compile(r"(?P<number>[0-9]{1,15})(?P<unit>[KMGT]?)(iB|B)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_ADDRESS: Final = re.compile(
    r"unix:\S+|fd://[0-9]+|(tcp://)?(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/,]*)(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)

_ORIGIN: Final = re.compile(r"\*|https?://((\*\.)?[a-z0-9_][a-z0-9_.-]{0,252}|\[[0-9a-f:]+\])(:(?P<port>[0-9]{1,5}))?")
_PLACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}|/[^\x00-\x1f]{1,1000}")

_Kind = Literal["seconds", "number", "count", "bytes", "choice", "addresses", "origins", "place"]


class SettingsError(LongConnError, ValueError):
    """One or more settings are wrong. `problems` has one sentence each, which is also what the error says."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class _Option:
    """What a field accepts and what it means. `zero` says what 0 does where it does something of its own."""

    kind: _Kind
    unit: str
    meaning: str
    least: float = 0
    most: float = 0
    zero: str = ""
    choices: tuple[str, ...] = ()

    @property
    def accepted(self) -> str:
        """What is accepted, in words."""
        if self.kind == "choice":
            return " or ".join(self.choices)
        if self.kind == "addresses":
            return "bind addresses as given to gunicorn (HOST:PORT, unix:PATH or fd://NUMBER), separated by commas"
        if self.kind == "origins":
            return "origins such as https://app.example or https://*.example.com:8443, separated by commas, or *"
        if self.kind == "place":
            return (
                "a name of at most 48 letters, digits, dots, hyphens and underscores, or the absolute path of a folder"
            )
        what = {
            "seconds": "seconds",
            "number": "a number",
            "count": "a whole number",
            "bytes": "a whole number of bytes (K, M, G and T are understood: 64K, 10M)",
        }[self.kind]
        zero = f", or 0: {self.zero}" if self.zero else ""
        return f"{what} from {self._least} to {self._most}{zero}"

    @property
    def range(self) -> str:
        """The range, in few characters."""
        if self.kind == "choice":
            return ", ".join(f"`{choice}`" for choice in self.choices)
        if self.kind == "addresses":
            return "addresses with commas between"
        if self.kind == "origins":
            return "origins with commas between, or `*`"
        if self.kind == "place":
            return "a name, or the path of a folder"
        zero = f"; 0: {self.zero}" if self.zero else ""
        return f"{self._least} to {self._most}{zero}"

    @property
    def _least(self) -> str:
        return _size_text(int(self.least)) if self.kind == "bytes" else f"{self.least:,g}"

    @property
    def _most(self) -> str:
        return _size_text(int(self.most)) if self.kind == "bytes" else f"{int(self.most):,}"

    def read(self, text: str) -> object:
        """The value that `text` stands for. Raises `ValueError` when it stands for none."""
        match self.kind:
            case "seconds" | "number":
                if not _DECIMAL.fullmatch(text):
                    raise ValueError(text)
                return float(text)
            case "count":
                if not _WHOLE.fullmatch(text):
                    raise ValueError(text)
                return int(text)
            case "bytes":
                return _bytes(text)
            case "choice" | "place":
                return text
            case "addresses" | "origins":
                return tuple(part.strip() for part in text.split(","))

    def check(self, value: object) -> object:
        """`value` in the type of the field. Raises `ValueError` when it is not accepted."""
        match self.kind:
            case "choice":
                if value not in self.choices:
                    raise ValueError(value)
                return value
            case "addresses":
                return _addresses(value)
            case "origins":
                return _origins(value)
            case "place":
                if not isinstance(value, str) or (value and not _PLACE.fullmatch(value)):
                    raise ValueError(value)
                return value
            case "seconds" | "number":
                return float(self._number(value))
            case "count" | "bytes":
                number = self._number(value)
                if number != int(number):
                    raise ValueError(value)
                return int(number)

    def _number(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise ValueError(value)
        if not (self.least <= value <= self.most or (value == 0 and self.zero)):
            raise ValueError(value)
        return value


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return int(found["number"]) * _UNITS[found["unit"].upper()]


def _size_text(count: int) -> str:
    for unit in ("T", "G", "M", "K"):
        if count and count % _UNITS[unit] == 0:
            return f"{count // _UNITS[unit]}{unit}"
    return f"{count}"


def _addresses(value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple | list):
        raise TypeError(value)
    for address in value:
        found = _ADDRESS.fullmatch(address) if isinstance(address, str) and address else None
        if found is None or not 0 <= int(found["port"] or 0) <= 65_535:
            raise ValueError(address)
    return tuple(value)


def _origins(value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple | list):
        raise TypeError(value)
    origins = tuple(origin.lower().rstrip("/") if isinstance(origin, str) else "" for origin in value)
    for origin in origins:
        found = _ORIGIN.fullmatch(origin)
        if found is None or not 0 <= int(found["port"] or 0) <= 65_535:
            raise ValueError(origin)
    return origins


def _seconds(default: float, meaning: str, *, least: float = 0.001, most: float = _DAY, zero: str = "") -> Any:
    return field(default=default, metadata={"option": _Option("seconds", "s", meaning, least, most, zero)})


def _number(default: float, unit: str, meaning: str, *, least: float, most: float, zero: str = "") -> Any:
    return field(default=default, metadata={"option": _Option("number", unit, meaning, least, most, zero)})


def _count(default: int, unit: str, meaning: str, *, least: int = 1, most: int, zero: str = "") -> Any:
    return field(default=default, metadata={"option": _Option("count", unit, meaning, least, most, zero)})


def _size(default: int, meaning: str, *, least: int = 1, most: int, zero: str = "") -> Any:
    return field(default=default, metadata={"option": _Option("bytes", "bytes", meaning, least, most, zero)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one worker, in seconds, bytes and connections. `describe()` tells the meaning of each.

    Made by hand or by `from_environment`; both raise `SettingsError` for a value that is not accepted.
    """

    handshake_timeout: float = _seconds(5.0, "longest time of a TLS handshake, from the accept to its end", most=3_600)
    head_timeout: float = _seconds(
        10.0,
        "longest time of a request's head, from its first byte to its last, however it trickles",
        most=3_600,
    )
    body_timeout: float = _seconds(30.0, "longest time in which nothing of a request's body arrives")
    body_rate: float = _number(
        100.0,
        "bytes/s",
        "lowest average rate at which a request's body must arrive",
        least=1,
        most=1e9,
        zero="no minimum",
    )
    write_timeout: float = _seconds(30.0, "longest time in which a client takes nothing of its answer")
    write_rate: float = _number(
        100.0,
        "bytes/s",
        "lowest average rate at which a client must take its answer",
        least=1,
        most=1e9,
        zero="no minimum",
    )
    request_timeout: float = _seconds(
        0.0,
        "longest time until the application begins its answer; then the client gets 504",
        zero="as long as it takes",
    )
    idle_timeout: float = _seconds(
        75.0,
        "longest wait of a connection for its next request; gunicorn's `keepalive`, where set, is the default",
        zero="no keep-alive",
    )
    max_requests_per_connection: int = _count(
        10_000, "requests", "most requests that a connection serves before it is closed", most=10**12, zero="no limit"
    )
    max_body: int = _size(0, "longest body of a request; a longer one is answered 413", most=1 << 50, zero="no limit")
    max_connections: int = _count(
        0,
        "connections",
        "most connections of a worker; gunicorn's `worker_connections`, where set, is the default",
        most=10_000_000,
        zero="what the file descriptors allow",
    )
    max_connections_per_client: int = _count(
        0,
        "connections",
        "most connections of one client address to a worker; more are answered 429",
        most=10_000_000,
        zero="no limit",
    )
    max_connections_total: int = _count(
        0,
        "connections",
        "most connections of all workers together, as far as each knows of the others; more are answered 503",
        most=1_000_000_000,
        zero="no limit",
    )
    accept_rate: float = _number(
        0.0, "connections/s", "highest average rate at which a worker accepts", least=0.001, most=1e6, zero="no limit"
    )
    accept_burst: int = _count(
        0,
        "connections",
        "most connections that a worker accepts at once under `LONGCONN_ACCEPT_RATE`",
        most=10_000_000,
        zero="one second's worth",
    )
    head_memory: int = _size(
        64 << 20,
        "memory for all incomplete heads of a worker; beyond it the oldest are closed",
        least=64 << 10,
        most=1 << 40,
    )
    linger: float = _seconds(
        2.0,
        "how long a leaving worker waits for requests that are on their way on parked connections",
        least=0,
        most=3_600,
    )
    drain_delay: float = _seconds(
        0.0,
        "how long a worker that is told to stop goes on accepting, so that balancers can notice",
        least=0,
        most=3_600,
    )
    drain_margin: float = _seconds(
        1.0, "how long before the end of gunicorn's `graceful_timeout` everything is closed", least=0, most=3_600
    )
    retry_after: int = _count(
        1, "s", "what `Retry-After` tells a client that is refused (429, 503)", least=0, most=_DAY
    )
    reserved_listeners: tuple[str, ...] = field(
        default=(),
        metadata={
            "option": _Option(
                "addresses",
                "addresses",
                "listeners that keep places of their own, such as an admin listener",
            )
        },
    )
    reserved_connections: int = _count(
        32, "connections", "places that each reserved listener has, beside those of the others", most=65_536
    )
    blocked_threshold: float = _number(
        0.1,
        "s",
        "longest turn of the event loop; a longer one is counted and logged with its stack",
        least=0.01,
        most=3_600,
        zero="not watched",
    )
    collector: Literal["tuned", "stock"] = field(
        default="tuned",
        metadata={
            "option": _Option(
                "choice",
                "",
                "how Python's garbage collector runs: tuned for many long-lived objects, or as Python sets it",
                choices=("tuned", "stock"),
            )
        },
    )
    tcp_keepalive: int = _count(
        60,
        "s",
        "silence after which TCP asks whether the client is still there",
        most=32_767,
        zero="never asks",
    )
    tcp_user_timeout: float = _seconds(
        30.0,
        "longest time that sent data stays unacknowledged before TCP gives the client up",
        most=_DAY,
        zero="the kernel's own, minutes",
    )
    allowed_origins: tuple[str, ...] = field(
        default=(),
        metadata={
            "option": _Option(
                "origins",
                "origins",
                "pages of other origins that may open WebSockets; a page of the same origin always may, `*` lets every page",
            )
        },
    )
    channels: str = field(
        default="",
        metadata={
            "option": _Option(
                "place",
                "folder",
                "where channels keep their messages: a name for a folder in shared memory, or a folder. Without it the "
                "application's own name and path make one",
            )
        },
    )
    channels_size: int = _size(
        128 << 20, "most memory for the messages that all channels keep", least=4 << 20, most=1 << 40
    )
    greenlets_kept: int = _count(256, "greenlets", "idle greenlets kept for the next request", least=0, most=100_000)

    def __post_init__(self) -> None:
        problems = []
        for name, option in _options():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, option.check(value))
            except (TypeError, ValueError, OverflowError):
                problems.append(f"{name}={value!r}: takes {option.accepted}")
        if not problems:
            problems.extend(self._contradictions())
        if problems:
            raise SettingsError(*problems)

    def _contradictions(self) -> Iterator[str]:
        if self.accept_burst and not self.accept_rate:
            yield f"{PREFIX}ACCEPT_BURST={self.accept_burst}: means nothing without {PREFIX}ACCEPT_RATE"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, defaults: Mapping[str, object] | None = None) -> Self:
        """Read all settings from `environ`, which overrules `defaults` (by field name, as values or as text).

        `defaults` is where gunicorn's own explicit settings and those of `gunicorn.conf.py` go. Raises `SettingsError`
        with every problem at once.
        """
        problems: list[str] = []
        values: dict[str, object] = {}
        options = dict(_options())
        for name, value in (defaults or {}).items():
            problems.extend(_take(values, options, name, value, called=name))
        for variable in sorted(environ):
            # An empty variable cannot say anything, but its name can still be misspelt.
            if variable.startswith(PREFIX):
                name = variable.removeprefix(PREFIX).lower() if variable.isupper() else variable
                problems.extend(_take(values, options, name, environ[variable], called=variable))
        if not problems:
            try:
                return cls(**cast("dict[str, Any]", values))
            except SettingsError as error:
                problems.extend(error.problems)
        raise SettingsError(*problems)

    @staticmethod
    def describe() -> str:
        """Every setting in a Markdown table: variable, default, unit, range, meaning."""
        rows = ["| variable | default | unit | accepted | meaning |", "|---|---|---|---|---|"]
        for one in fields(Settings):
            option = _option(one)
            rows.append(
                f"| `{PREFIX}{one.name.upper()}` | {_default_text(one.default, option)} | {option.unit} | {option.range} "
                f"| {option.meaning} |"
            )
        return "\n".join(rows) + "\n"


def _option(one: Field[Any]) -> _Option:
    return cast("_Option", one.metadata["option"])


def _options() -> Iterator[tuple[str, _Option]]:
    return ((one.name, _option(one)) for one in fields(Settings))


def _take(
    values: dict[str, object], options: Mapping[str, _Option], name: str, value: object, *, called: str
) -> Iterator[str]:
    """Put `value` into `values`, or yield what is wrong with it."""
    option = options.get(name)
    if option is None:
        nearest = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), options, n=1, cutoff=0.0)[0]
        known = f"{PREFIX}{nearest.upper()}" if called.startswith(PREFIX) else nearest
        yield f"{called}: there is no such setting; the nearest is {known}"
        return
    try:
        if not isinstance(value, str):
            values[name] = option.check(value)
        elif value.strip():
            values[name] = option.check(option.read(value.strip()))
    except (TypeError, ValueError, OverflowError):
        yield f"{called}={value!r}: takes {option.accepted}"


def _default_text(default: object, option: _Option) -> str:
    if option.kind == "bytes":
        return _size_text(cast("int", default))
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, int):
        return f"{default:,}"
    return f"`{default}`" if default else "none"


if __name__ == "__main__":
    print(Settings.describe(), end="")
