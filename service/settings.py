"""The only reader of configuration: YAML, environment and secret files become one frozen `Settings`.

Sources, each overruling the one before it:

1. defaults of the fields below;
2. ``config/<environment>.yaml``, where ``SEAWALL_ENVIRONMENT`` names the environment (default ``development``);
3. environment variables, named like the field in upper case; empty ones count as absent, and ``none`` says "no
   value" where a field allows that. ``BACKENDS__<name>`` gives one backend, ``MIDDLEWARE_OFF`` takes a comma list;
4. files in the folder ``SECRETS_DIR``, named like the field in lower case;
5. the file that a variable ``<NAME>_FILE`` points to.

Whatever is wrong is reported at once in one `SettingsError` that names each setting, where its value came from and
what is accepted. It never holds a value, since any of them may be a secret.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableText

__all__ = ["Environment", "Origin", "Settings", "SettingsError"]

Environment = Literal["development", "testing", "production"]
Origin = Literal["default", "code", "config", "environment", "file"]
"""Where a value comes from: "config" is the YAML file, "file" one that holds this value alone."""

TESTING_SECRET_PREFIX = "testing-only-"  # noqa: S105 - the mark that makes a secret refused outside testing
SECRET_BYTES = 32
MAKE_A_SECRET = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(48))'"  # noqa: S105 - advice

ONE_RATE = re.compile(
    r"\s*(?P<amount>[1-9][0-9]*)\s*(/|per)\s*(?P<many>[1-9][0-9]*)?\s*(?P<unit>second|minute|hour|day|month|year)s?\s*",
    re.IGNORECASE,
)
UNITS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "month": 30 * 86_400, "year": 360 * 86_400}
LARGEST_RATE = 100_000_000
"""Up to here limits are exact over every period that is accepted."""
LONGEST_PERIOD = 366 * 86_400
# With a password whatever it holds: what opens the storage reads it, and says what is wrong with it.
SERVER = (
    r"((redis|valkey)\+)?unix://[^\s]+"
    r"|(redis|valkey)s?(\+(sentinel|cluster))?://([^\s/]*@)?(?P<servers>[^\s/?@]*)([/?][^\s]*)?"
)
SHARED_MEMORY = r"shm://([A-Za-z0-9_][A-Za-z0-9_.-]{0,63}|/[^?#\s]+)?"
STORAGE = re.compile(rf"memory://(\?buckets=[1-9][0-9]*)?|{SHARED_MEMORY}(\?buckets=[1-9][0-9]*)?|{SERVER}")
STATE_STORAGE = re.compile(rf"memory://|{SHARED_MEMORY}(\?records=[1-9][0-9]*)?|{SERVER}")
STORAGE_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][:,]*)(:(?P<port>[0-9]{1,5}))?")
BACKEND_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
MIDDLEWARE_NAME = re.compile(r"[a-z][a-z0-9_]*")
# As SQLAlchemy reads it, which takes passwords that no other reader of URLs would.
POSTGRESQL = re.compile(
    r"postgresql(\+psycopg)?://([^:/]*(:[^@]*)?@)?(\[[^][/?@]+\]|[^][:/?@]+)?(:(?P<port>[0-9]{1,5})?)?([/?].*)?",
    re.DOTALL,
)
LARGEST_PORT = 65_535
DAY = 86_400


class SettingsError(Exception):
    """The configuration cannot be used. The message names every setting at fault, its source and what is accepted."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _split_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < SECRET_BYTES:
        raise ValueError(f"must be at least {SECRET_BYTES} bytes long; {MAKE_A_SECRET}")
    return secret


def _database_url(url: str) -> str:
    if url.startswith("sqlite:///"):
        usable = url.removeprefix("sqlite:///") not in ("", ":memory:")
    else:
        parts = POSTGRESQL.fullmatch(url)
        usable = parts is not None and 1 <= int(parts["port"] or 1) <= LARGEST_PORT
    if not usable:
        raise ValueError(
            "must be sqlite:///<path of a file> or postgresql://<user>:<password>@<host>[:<port>]/<database>, with a port "
            f"from 1 to {LARGEST_PORT} and @ : / percent-encoded in the password"
        )
    return url


def _storage_uri(uri: str) -> str:
    return _of_form(STORAGE, uri)


def _state_uri(uri: str) -> str:
    return _of_form(STATE_STORAGE, uri)


def _of_form(form: re.Pattern[str], uri: str) -> str:
    parts = form.fullmatch(uri)
    servers = [STORAGE_SERVER.fullmatch(server) for server in (parts["servers"] or "").split(",")] if parts else []
    ports = [int(server["port"] or 1) for server in servers if server]
    if parts is None or None in servers or not all(1 <= port <= LARGEST_PORT for port in ports):
        raise ValueError(
            "must be memory://, shm://[<name>], redis(s)://<host>[:<port>][/<number>], redis+unix://<path>, "
            "redis+sentinel://<host>[:<port>][,...]/<service> or redis+cluster://<host>[:<port>][,...]; "
            "valkey may stand for redis"
        )
    return uri


def _has_place(url: str, schemes: Collection[str]) -> bool:
    """Whether there is a URL of one of the schemes with a place that can be reached."""
    try:
        scheme, port = urlsplit(url).scheme, urlsplit(url).port
    except ValueError:  # no port, or brackets that do not match
        return False
    return scheme in schemes and "://" in url and port != 0


def _rate(text: str) -> str:
    rates = [ONE_RATE.fullmatch(part) for part in text.split(";")]
    periods = [int(rate["many"] or 1) * UNITS[rate["unit"].lower()] for rate in rates if rate]
    if None in rates or any(int(rate["amount"]) > LARGEST_RATE for rate in rates if rate):
        raise ValueError(
            "must be a rate such as 200/second or 10 per 5 minutes, or several separated by ;, "
            f"each of at most {LARGEST_RATE}"
        )
    if max(periods) > LONGEST_PERIOD:
        raise ValueError(f"must have no period above {LONGEST_PERIOD // DAY} days")
    if len(set(periods)) < len(periods):
        raise ValueError("must not name two of the same period; keep the tighter one")
    return text


def _middleware_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(MIDDLEWARE_NAME.fullmatch(name) for name in names):
        raise ValueError("must be names from the middleware chain, separated by commas, such as rate_limit,trace")
    return names


def _backends(backends: dict[str, str]) -> dict[str, str]:
    for name, url in backends.items():
        if not BACKEND_NAME.fullmatch(name):
            raise ValueError("names must be lower-case letters, digits, - and _, at most 63")
        if not _is_base_url(url):
            raise ValueError(
                f"{name} must be http(s)://<host>[:<port>][/<path>] without user, query or fragment, in ASCII: "
                "percent-encode the path and write the host in Punycode"
            )
    return backends


def _is_base_url(url: str) -> bool:
    if not _has_place(url, ("http", "https")):
        return False
    parts = urlsplit(url)
    on_the_wire = url.isascii() and url.isprintable() and " " not in url
    return bool(parts.hostname) and on_the_wire and not (parts.query or parts.fragment or "@" in parts.netloc)


Port = Annotated[int, Field(ge=1, le=LARGEST_PORT)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=DAY, allow_inf_nan=False)]
Wait = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, le=DAY, allow_inf_nan=False)]
Rate = Annotated[str, AfterValidator(_rate)]
Secret = Annotated[SecretStr, AfterValidator(_long_enough)]


class Settings(BaseSettings):
    """Everything that an operator may set, checked. Frozen; times in seconds, sizes in bytes.

    `Settings.load()` reads the configuration; `Settings(**values)` takes exactly the values given and reads nothing.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, env_nested_delimiter="__")

    environment: Environment = "development"

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 8000
    admin_port: Port = 8001
    web_concurrency: Count | None = None
    """Worker processes. None: one per CPU."""

    database_url: Annotated[str, AfterValidator(_database_url)] = "sqlite:///var/seawall.db"
    database_timeout: Annotated[Seconds, Field(le=300)] = 5.0
    """How long a statement or a write may wait before the request is refused with 503."""
    database_pool_size: Count = 10
    """Connections per worker (PostgreSQL)."""
    slow_statement: SecondsOrZero = 0.1
    """A statement that takes longer is logged."""

    token_secret: Secret
    """Signs tokens (HMAC SHA-256)."""
    token_secret_previous: Secret | None = None
    """Still accepted and no longer used to sign, so that `token_secret` can be changed without signing everyone out."""
    token_lifetime: Annotated[int, Field(ge=1, le=30 * 86_400)] = 3600
    password_threads: Annotated[int, Field(ge=1, le=64)] = 2
    password_queue: Count = 256
    """Passwords that may wait for a thread, per worker; the next one is refused with 503."""

    resilience_storage_uri: Annotated[str, AfterValidator(_storage_uri)] | None = None
    """Where limits count. None: in memory that the workers of this service share."""
    resilience_storage_timeout: Wait = 0.05
    """How long a request waits for a server that has the limits."""
    resilience_storage_namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = "seawall"
    """What the names of limits on a server begin with, and those of circuits wherever they are kept."""
    resilience_on_store_failure: Literal["local", "allow", "deny"] = "local"
    """Who decides while that does not answer: each worker its share of the limit, or nobody."""
    resilience_state_uri: Annotated[str, AfterValidator(_state_uri)] | None = None
    """Where circuits are kept, and what operators have ordered. None: in memory that the workers of this service share.
    memory:// keeps each worker to itself."""
    resilience_state_timeout: Wait = 0.05
    """How long anybody waits for a server that has the circuits."""
    resilience_admin_token: Secret | None = None
    """Opens the admin listener. None: there is no admin surface."""
    trusted_proxies: Annotated[int, Field(ge=0)] = 0
    """Proxies in front of the service whose X-Forwarded-For entries are believed."""
    rate_limit: Rate = "200/second"
    rate_limit_burst: Annotated[int, Field(ge=1, le=LARGEST_RATE)] | None = 400
    login_rate_limit: Rate = "10/minute"

    request_timeout: Annotated[Seconds, Field(ge=0.1)] = 30.0
    body_limit: Count = 1_048_576

    demo_page: bool | None = None
    """Whether there is the demo page at /, and whether its guests, who need no token, are let in. None: but in production."""
    ticket_lifetime: Annotated[int, Field(ge=1, le=300)] = 30
    """How long a one-time ticket for a WebSocket or an event stream holds."""
    message_limit: Annotated[int, Field(ge=256, le=16_777_216)] = 65_536
    """Largest message of a channel."""
    message_rate: Rate = "50/second"
    """Messages that each WebSocket may send."""
    channel_history: Annotated[int, Field(ge=0, le=100_000)] = 100
    """Messages that each channel keeps for those who come back."""
    channel_history_age: Seconds = 300.0
    """How long it keeps them."""

    middleware_off: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split_commas), AfterValidator(_middleware_names)
    ] = ()

    backends: Annotated[dict[str, str], AfterValidator(_backends)] = Field(default_factory=dict)
    """Base URL by name."""
    backend_connect_timeout: Seconds = 1.0
    backend_read_timeout: Seconds = 5.0
    """How long a backend may be silent."""
    backend_stream_timeout: Seconds = 60.0
    """How long the whole body of a response may take."""
    backend_connections: Count = 100
    """Connections to each backend, per worker."""
    backend_pool_timeout: SecondsOrZero = 1.0
    """How long a request waits for one of them."""
    backend_body_limit: Count = 10_485_760
    """Largest request body that is forwarded."""
    backend_fail_max: Count = 5
    """Failures in a row that open a backend's circuit."""
    backend_failure_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 0.5
    """The share of failures that opens it as well, of 20 calls or more within the last minute. None: no such rule."""
    backend_reset_timeout: Seconds = 10.0
    """How long it is left alone then, the first time; twice as long each time that it fails again, ten times at most."""
    backend_quorum: Count = 2
    """Hosts that must find a backend ill before its circuit opens for all of them. 1: one speaks for all."""

    log_level: Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)] = "info"
    log_format: Annotated[Literal["json", "console"], BeforeValidator(_lower)] = "json"

    drain_delay: Annotated[SecondsOrZero, Field(le=3600)] = 0.0
    """How long the listener stays open after readiness has turned 503, so that balancers can notice."""
    graceful_timeout: Seconds = 20.0
    """How long requests in flight may take after that. A platform's own patience must exceed the sum of both."""
    peer_directory: Path | None = None
    """Where each worker keeps its admin socket. None: derived from the master's process id."""

    _origins: dict[str, Origin] | None = PrivateAttr(default=None)

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] = os.environ,
        directory: Path = Path("config"),
        *,
        fallbacks: Mapping[str, str] = MappingProxyType({}),
    ) -> Settings:
        """Read the configuration in the order given at the top of this module.

        `environ` stands in for the process environment, `directory` holds ``<environment>.yaml``, `fallbacks` are
        values for fields that no source gives. Raises `SettingsError` when a file is missing or unreadable, a key
        unknown, or a value bad or missing.
        """
        environment = _environment(environ)
        values: dict[str, Any] = {**fallbacks, "environment": environment}
        origins: dict[str, str] = {}
        kinds: dict[str, Origin] = {}
        for source in _sources(environ, directory / f"{environment}.yaml"):
            for name, value in source.values.items():
                values[name] = _merged(values.get(name), value)
                origins[name] = source.origin(name)
                kinds[name] = source.kind
        try:
            settings = cls(**values)
        except ValidationError as error:
            raise SettingsError(_report(error.errors(include_input=False, include_url=False), origins)) from None
        settings._origins = kinds
        return settings

    def origin(self, name: str) -> Origin:
        """Where the value of the setting `name` comes from."""
        if self._origins is None:
            return "code" if name in self.model_fields_set else "default"
        return self._origins.get(name, "default")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is the base's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller passes counts: what surrounds the process is read by `load`, where it is named."""
        return (init_settings,)

    @property
    def limit_storage(self) -> str:
        """Where limits count. Two services on one machine have a port each, and so do not count together."""
        return self.resilience_storage_uri or f"shm://seawall-{self.port}"

    @property
    def state_storage(self) -> str:
        """Where circuits are kept."""
        return self.resilience_state_uri or f"shm://seawall-{self.port}-state"

    @property
    def has_demo(self) -> bool:
        """Whether the demo page is there, and guests are let in."""
        return self.environment != "production" if self.demo_page is None else self.demo_page

    @property
    def channel_place(self) -> str:
        """Where channels keep their messages, unless LONGCONN_CHANNELS says where."""
        return f"seawall-{self.port}"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.port == self.admin_port:
            raise ValueError("port and admin_port are the same; the admin listener needs a port of its own")
        marked = self.token_secret.get_secret_value().startswith(TESTING_SECRET_PREFIX)
        if marked and self.environment != "testing":
            raise ValueError(f"token_secret is the published one of the tests; {MAKE_A_SECRET}")
        return self

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """The fields as `repr` and `str` show them: secrets masked, and whatever in a URL may be a password."""
        return [(name, _masked(value) if _is_url(value) else value) for name, value in super().__repr_args__()]


@dataclass(frozen=True, slots=True)
class _Source:
    kind: Origin
    values: Mapping[str, Any]
    origin: Callable[[str], str]


def _environment(environ: Mapping[str, str]) -> Environment:
    name = environ.get("SEAWALL_ENVIRONMENT") or "development"
    for known in get_args(Environment):
        if name == known:
            return known  # type: ignore[no-any-return]  # get_args is untyped
    raise SettingsError(f"SEAWALL_ENVIRONMENT must be one of {', '.join(get_args(Environment))}")


def _sources(environ: Mapping[str, str], file: Path) -> list[_Source]:
    folder = environ.get("SECRETS_DIR")
    pointers = {f"{name.upper()}_FILE": name for name in Settings.model_fields}
    pointed = {pointers[key]: Path(path) for key, path in environ.items() if path and key in pointers}
    own = {key.lower(): text for key, text in environ.items() if key.isupper() or key.startswith("BACKENDS__")}
    return [
        _Source("config", _read_yaml(file), lambda _: str(file)),
        _Source(
            "environment", _parse_texts(own, "the environment"), lambda name: f"environment variable {name.upper()}"
        ),
        _Source("file", _parse_texts(_read_folder(folder), "SECRETS_DIR"), lambda name: f"{folder}/{name}"),
        _Source(
            "file",
            _parse_texts({name: _read_text(path) for name, path in pointed.items()}, "a file"),
            lambda name: f"{pointed[name]}, named by {name.upper()}_FILE",
        ),
    ]


def _merged(older: Any, newer: Any) -> Any:
    both = isinstance(older, Mapping) and isinstance(newer, Mapping)
    return {**older, **newer} if both else newer


def _parse_texts(texts: Mapping[str, str], origin: str) -> dict[str, Any]:
    """Field values out of texts by lower-case name. Texts that name no field are someone else's and left alone."""
    source = EnvSettingsSource(Settings)
    source.env_vars = {name: text for name, text in texts.items() if text and name != "environment"}
    try:
        return {name: None if value == "none" else value for name, value in source().items()}
    except UnreadableText:
        raise SettingsError(
            f"cannot load the settings: BACKENDS in {origin} must be a JSON object of URLs by name"
        ) from None


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error rather than a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(problem="a key is given twice", problem_mark=node.start_mark)
        return mapping


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(_read_text(file), _StrictLoader)  # noqa: S506 - a SafeLoader, only stricter
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsError(f"{file}, line {line}: not valid YAML ({error.problem})") from None
    except yaml.YAMLError:
        raise SettingsError(f"{file}: not valid YAML") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise SettingsError(f"{file}: must be a mapping of setting names to values")
    if "environment" in content:
        raise SettingsError(f"{file}: environment is not a key; set the variable SEAWALL_ENVIRONMENT")
    return content


def _read_folder(folder: str | None) -> dict[str, str]:
    if not folder:
        return {}
    if not Path(folder).is_dir():
        raise SettingsError(f"SECRETS_DIR: {folder} is not a folder; create it or unset the variable")
    return {name: _read_text(file) for name in Settings.model_fields if (file := Path(folder, name)).is_file()}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except FileNotFoundError:
        raise SettingsError(f"{file} is missing; create it, or start from the folder that holds it") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None


def _report(errors: list[ErrorDetails], origins: Mapping[str, str]) -> str:
    lines = [_line(error, origins) for error in errors]
    return "\n  ".join(["cannot load the settings:", *lines])


def _line(error: ErrorDetails, origins: Mapping[str, str]) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    where = f" ({origins[name]})" if name in origins else ""
    return f"{name}{where}: {_advice(name, error)}" if name else _advice(name, error)


def _advice(name: str, error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return f"is required; set {name.upper()} or {name.upper()}_FILE (`make run` makes one per run); {MAKE_A_SECRET}"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        return f"is not a setting; did you mean {near[0]}?" if near else "is not a setting; remove it"
    return error["msg"].removeprefix("Value error, ")


def _is_url(value: object) -> bool:
    return isinstance(value, str) and "://" in value


def _masked(url: str) -> str:
    without_user = re.sub(r"://.*@", "://***@", url, flags=re.DOTALL)
    return re.sub(r"\?.*", "?***", without_user, flags=re.DOTALL)
