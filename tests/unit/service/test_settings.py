"""Settings: where values come from, which are refused, and that no secret is ever shown."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as some
from pydantic import SecretStr, ValidationError
from sqlalchemy import make_url

from resilience import open_storage
from resilience.notation import parse_limits
from resilience.storage.state_address import open_state_storage
from service.settings import Settings, SettingsError

SECRET = "a-secret-of-at-least-thirty-two-bytes"
OTHER = "another-secret-of-more-than-32-bytes."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration folder in which every environment exists and sets nothing."""
    for environment in ("development", "testing", "production"):
        (tmp_path / f"{environment}.yaml").write_text("")
    return tmp_path


def load(folder: Path, /, **environ: str) -> Settings:
    return Settings.load({"TOKEN_SECRET": SECRET, **environ}, folder)


def refusal(folder: Path, environ: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, folder)
    return str(caught.value)


def test_the_environment_is_development_unless_told_otherwise(folder: Path) -> None:
    assert "development" == load(folder).environment
    assert "production" == load(folder, SEAWALL_ENVIRONMENT="production").environment


def test_an_unknown_environment_is_refused_with_the_known_ones(folder: Path) -> None:
    expected = "SEAWALL_ENVIRONMENT must be one of development, testing, production"
    assert expected == refusal(folder, {"SEAWALL_ENVIRONMENT": "../../etc/passwd", "TOKEN_SECRET": SECRET})


def test_each_source_overrules_the_one_before(folder: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    pointed = tmp_path / "pointed"
    seen = []
    environ = {"TOKEN_SECRET": SECRET}
    seen.append(Settings.load(environ, folder).port)
    (folder / "development.yaml").write_text("port: 1111")
    seen.append(Settings.load(environ, folder).port)
    environ["PORT"] = "2222"
    seen.append(Settings.load(environ, folder).port)
    (secrets / "port").write_text("3333\n")
    environ["SECRETS_DIR"] = str(secrets)
    seen.append(Settings.load(environ, folder).port)
    pointed.write_text("4444\n")
    environ["PORT_FILE"] = str(pointed)
    seen.append(Settings.load(environ, folder).port)
    assert [8000, 1111, 2222, 3333, 4444] == seen


@pytest.mark.parametrize(
    ("variable", "text", "field", "expected"),
    [
        ("WEB_CONCURRENCY", "4", "web_concurrency", 4),
        ("DATABASE_TIMEOUT", "0.25", "database_timeout", 0.25),
        ("MIDDLEWARE_OFF", "rate_limit, trace", "middleware_off", ("rate_limit", "trace")),
        ("RATE_LIMIT_BURST", "none", "rate_limit_burst", None),
        ("RATE_LIMIT", "10 per 5 minutes; 1000/hour", "rate_limit", "10 per 5 minutes; 1000/hour"),
        ("LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("PEER_DIRECTORY", "/run/seawall", "peer_directory", Path("/run/seawall")),
        ("BACKENDS__demo", "http://127.0.0.1:9000/base", "backends", {"demo": "http://127.0.0.1:9000/base"}),
        ("BACKENDS__DEMO", "https://demo.example", "backends", {"demo": "https://demo.example"}),
        ("BACKENDS", '{"demo": "http://[::1]:1/"}', "backends", {"demo": "http://[::1]:1/"}),
        ("DATABASE_URL", "postgresql+psycopg://u@h/d", "database_url", "postgresql+psycopg://u@h/d"),
        (
            "DATABASE_URL",
            "postgresql://u:a/b?c#d@[::1]:5432/d?x=y",
            "database_url",
            "postgresql://u:a/b?c#d@[::1]:5432/d?x=y",
        ),
        ("DATABASE_URL", "postgresql:///d?host=/run", "database_url", "postgresql:///d?host=/run"),
    ],
)
def test_environment_variables_become_values(
    folder: Path, variable: str, text: str, field: str, expected: object
) -> None:
    assert expected == getattr(load(folder, **{variable: text}), field)


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("middleware_off: [rate_limit, trace]", "middleware_off", ("rate_limit", "trace")),
        ("middleware_off: rate_limit", "middleware_off", ("rate_limit",)),
        ("rate_limit_burst: null", "rate_limit_burst", None),
        ("backends: {demo: 'http://h'}", "backends", {"demo": "http://h"}),
    ],
)
def test_yaml_becomes_values(folder: Path, line: str, field: str, expected: object) -> None:
    (folder / "development.yaml").write_text(line)
    assert expected == getattr(load(folder), field)


def test_backends_of_all_sources_come_together(folder: Path) -> None:
    (folder / "development.yaml").write_text("backends: {one: 'http://one', two: 'http://old'}")
    settings = load(folder, BACKENDS__TWO="http://two", BACKENDS__three="http://three")
    assert {"one": "http://one", "two": "http://two", "three": "http://three"} == settings.backends


def test_empty_variables_count_as_absent(folder: Path) -> None:
    assert load(folder) == load(folder, PORT="", RESILIENCE_ADMIN_TOKEN="", SECRETS_DIR="", PORT_FILE="")


def test_variables_of_others_are_left_alone(folder: Path) -> None:
    assert load(folder) == load(folder, port="1", PATH="/bin", ENVIRONMENT="x", EXTRA="y", BACKEND="z")


def test_files_of_others_in_the_secrets_folder_are_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "README").write_text("not a setting")
    assert load(folder) == load(folder, SECRETS_DIR=str(tmp_path))


def test_settings_made_directly_read_nothing_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1234")
    assert 8000 == Settings(token_secret=SecretStr(SECRET)).port


def test_settings_cannot_be_changed(folder: Path) -> None:
    with pytest.raises(ValidationError):
        load(folder).port = 1


@pytest.mark.parametrize("environment", ["development", "production"])
def test_a_missing_token_secret_is_refused_with_what_to_do(folder: Path, environment: str) -> None:
    message = refusal(folder, {"SEAWALL_ENVIRONMENT": environment})
    assert "token_secret: is required; set TOKEN_SECRET or TOKEN_SECRET_FILE (`make run` makes one" in message


@pytest.mark.parametrize("environment", ["development", "production"])
def test_the_published_secret_of_the_tests_is_refused_elsewhere(folder: Path, environment: str) -> None:
    published = Settings.load({"SEAWALL_ENVIRONMENT": "testing"}).token_secret.get_secret_value()
    message = refusal(folder, {"SEAWALL_ENVIRONMENT": environment, "TOKEN_SECRET": published})
    assert "published one of the tests" in message
    assert published not in message


def test_the_shipped_configuration_is_valid_in_every_environment() -> None:
    loaded = [
        Settings.load({"SEAWALL_ENVIRONMENT": environment, "TOKEN_SECRET": SECRET}).environment
        for environment in ("development", "testing", "production")
    ]
    assert ["development", "testing", "production"] == loaded


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PORT": "x"}, r"port \(environment variable PORT\): .* valid integer"),
        ({"PORT": "0"}, r"port \(environment variable PORT\): .* greater than or equal to 1"),
        ({"DATABASE_TIMEOUT": "inf"}, "database_timeout .* (finite|300)"),
        ({"DATABASE_URL": "mysql://h/d"}, "database_url .* sqlite:///"),
        ({"DATABASE_URL": "sqlite://"}, "database_url .* sqlite:///<path of a file>"),
        ({"DATABASE_URL": "sqlite:///:memory:"}, "database_url .* sqlite:///<path of a file>"),
        ({"DATABASE_URL": "postgresql://u:pw@[::/x"}, r"database_url \(environment variable DATABASE_URL\): must be"),
        ({"DATABASE_URL": "postgresql://u:pw@h:abc/x"}, "database_url .* a port from 1 to 65535"),
        ({"DATABASE_URL": "postgresql://u:pw@h:65536/x"}, "database_url .* a port from 1 to 65535"),
        ({"DATABASE_URL": "postgresql://u:p@w@h/x"}, "database_url .* percent-encode"),
        ({"DATABASE_TIMEOUT": "0"}, "database_timeout .* greater than 0"),
        ({"RATE_LIMIT": "10/second; 5/1 second"}, "rate_limit .* two of the same period"),
        ({"RATE_LIMIT": "10/minute; 5/60 seconds"}, "rate_limit .* two of the same period"),
        ({"LOGIN_RATE_LIMIT": "10/minute; 5/minute"}, "login_rate_limit .* two of the same period"),
        ({"RATE_LIMIT": "100000001/second"}, "rate_limit .* 100000000"),
        ({"RATE_LIMIT": "1 per 2 years"}, "rate_limit .* 366 days"),
        ({"RATE_LIMIT_BURST": "100000001"}, "rate_limit_burst .* 100000000"),
        ({"RESILIENCE_STORAGE_URI": "http://h"}, "resilience_storage_uri .* memory://"),
        ({"RESILIENCE_STORAGE_URI": "redis://h:abc"}, "resilience_storage_uri .* memory://"),
        ({"RESILIENCE_STORAGE_URI": "redis://h:0"}, "resilience_storage_uri .* memory://"),
        ({"RESILIENCE_STORAGE_URI": "redis://h:65536/0"}, "resilience_storage_uri .* memory://"),
        ({"RESILIENCE_STORAGE_URI": "redis://[::/0"}, "resilience_storage_uri .* memory://"),
        ({"RESILIENCE_STORAGE_URI": "redis+cluster://one:7000,two:70000"}, "resilience_storage_uri .* memory://"),
        ({"RESILIENCE_STORAGE_URI": "shm://.."}, "resilience_storage_uri .* shm://"),
        ({"RESILIENCE_STORAGE_URI": "memory://here"}, "resilience_storage_uri .* memory://"),
        ({"RESILIENCE_STATE_URI": "http://h"}, "resilience_state_uri .* memory://"),
        ({"RESILIENCE_STATE_URI": "redis://h:0"}, "resilience_state_uri .* memory://"),
        ({"RESILIENCE_STATE_URI": "memory://?records=9"}, "resilience_state_uri .* memory://"),
        ({"RESILIENCE_STATE_URI": "shm://x?buckets=9"}, "resilience_state_uri .* shm://"),
        ({"BACKEND_FAILURE_RATE": "0"}, "backend_failure_rate .* greater than 0"),
        ({"BACKEND_FAILURE_RATE": "50"}, "backend_failure_rate .* less than or equal to 1"),
        ({"BACKEND_QUORUM": "0"}, "backend_quorum .* greater than or equal to 1"),
        ({"RESILIENCE_ON_STORE_FAILURE": "open"}, "resilience_on_store_failure .* 'local', 'allow' or 'deny'"),
        ({"REQUEST_TIMEOUT": "0.09"}, "request_timeout .* greater than or equal to 0.1"),
        ({"REQUEST_TIMEOUT": "86401"}, "request_timeout .* less than or equal to 86400"),
        ({"BACKEND_READ_TIMEOUT": "1e9"}, "backend_read_timeout .* less than or equal to 86400"),
        ({"DRAIN_DELAY": "1e9"}, "drain_delay .* less than or equal to 3600"),
        ({"BACKENDS__a": "http://caf\xe9.example"}, "backends .* a must be http.* in ASCII"),
        ({"BACKENDS__a": "http://a.example/caf\xe9"}, "backends .* a must be http.* in ASCII"),
        ({"BACKENDS__a": "http://a.example/\x01"}, "backends .* a must be http"),
        ({"RATE_LIMIT": "often"}, "rate_limit .* 200/second"),
        ({"RATE_LIMIT": "0/second"}, "rate_limit .* 200/second"),
        ({"RESILIENCE_STORAGE_URI": "localhost:6379"}, "resilience_storage_uri .* memory://"),
        ({"MIDDLEWARE_OFF": "Rate Limit"}, "middleware_off .* separated by commas"),
        ({"LOG_FORMAT": "xml"}, "log_format .* 'json' or 'console'"),
        ({"RESILIENCE_ADMIN_TOKEN": "short"}, "resilience_admin_token .* at least 32 bytes"),
        ({"TOKEN_SECRET": "short"}, "token_secret .* at least 32 bytes"),
        ({"BACKENDS__a": "ftp://h"}, "backends .* a must be http"),
        ({"BACKENDS__a": "http://user:password@h"}, "backends .* without user"),
        ({"BACKENDS__a": "http://h?query"}, "backends .* without user, query"),
        ({"BACKENDS__a": "http://h:port"}, "backends .* a must be http"),
        ({"BACKENDS__a b": "http://h"}, "backends .* names must be"),
        ({"BACKENDS": "{"}, "BACKENDS in the environment must be a JSON object"),
        ({"ADMIN_PORT": "8000"}, "port and admin_port are the same"),
        ({"PORT_FILE": "/nowhere/port"}, "/nowhere/port is missing"),
        ({"PORT_FILE": "/"}, "/ cannot be read"),
        ({"SECRETS_DIR": "/nowhere"}, "SECRETS_DIR: /nowhere is not a folder"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_its_source_and_what_is_accepted(
    folder: Path, environ: dict[str, str], expected: str
) -> None:
    assert re.search(expected, refusal(folder, {"TOKEN_SECRET": SECRET, **environ}))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("prot: 80", r"prot \(.*development\.yaml\): is not a setting; did you mean port\?"),
        ("zzzzzzzz: 80", r"zzzzzzzz \(.*development\.yaml\): is not a setting; remove it"),
        ("port: many", r"port \(.*development\.yaml\): .* valid integer"),
        ("port: 1\nport: 2", "development.yaml, line 1: not valid YAML .*given twice"),
        ("port: [1", r"development.yaml, line \d: not valid YAML"),
        ("\x00", "development.yaml: not valid YAML"),
        ("- port", "development.yaml: must be a mapping"),
        ("1: 2", "development.yaml: must be a mapping"),
        ("environment: production", "set the variable SEAWALL_ENVIRONMENT"),
    ],
)
def test_bad_yaml_is_refused_with_the_place(folder: Path, content: str, expected: str) -> None:
    (folder / "development.yaml").write_text(content)
    assert re.search(expected, refusal(folder, {"TOKEN_SECRET": SECRET}))


def test_a_missing_configuration_file_is_refused_with_its_path(tmp_path: Path) -> None:
    assert "development.yaml is missing" in refusal(tmp_path, {"TOKEN_SECRET": SECRET})


def test_a_file_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / "development.yaml").write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in refusal(folder, {"TOKEN_SECRET": SECRET})


def test_everything_that_is_wrong_is_reported_at_once(folder: Path) -> None:
    (folder / "development.yaml").write_text("prot: 80")
    message = refusal(folder, {"PORT": "x", "RATE_LIMIT": "often"})
    assert ["port", "prot", "rate_limit", "token_secret"] == sorted(re.findall(r"^  (\w+)", message, re.MULTILINE))


@given(
    amounts=some.lists(some.integers(1, 10**9), min_size=1, max_size=3),
    periods=some.lists(some.integers(1, 10**8), min_size=3, max_size=3),
    units=some.lists(
        some.sampled_from(["second", "minutes", "hour", "days", "month", "years"]), min_size=3, max_size=3
    ),
    burst=some.none() | some.integers(1, 10**9),
)
def test_every_rate_that_is_accepted_can_be_limited_to(
    amounts: list[int], periods: list[int], units: list[str], burst: int | None
) -> None:
    text = "; ".join(f"{amount} per {n} {unit}" for amount, n, unit in zip(amounts, periods, units, strict=False))
    try:
        accepted = Settings(token_secret=SecretStr(SECRET), rate_limit=text, rate_limit_burst=burst)
    except ValidationError:
        return
    assert len(amounts) == len(parse_limits(accepted.rate_limit, burst=burst))


@pytest.mark.parametrize(
    "uri",
    [
        *(f"{scheme}://:secret@[::1]:6379/0" for scheme in ("redis", "rediss", "valkey", "valkeys")),
        *(f"{scheme}:///run/socket" for scheme in ("redis+unix", "valkey+unix", "unix")),
        "redis://user:pass:word@host",
        "redis+sentinel://:secret@one:26379,two,[::1]:26380/limits/1",
        "redis+cluster://one:7000,two:7001",
        "memory://",
        "memory://?buckets=1000",
        "shm://",
        "shm://name?buckets=1000",
        "shm:///absolute/path",
    ],
)
def test_every_storage_that_is_accepted_can_be_opened(folder: Path, uri: str) -> None:
    assert open_storage(load(folder, RESILIENCE_STORAGE_URI=uri).limit_storage) is not None


@pytest.mark.parametrize(
    "uri",
    [
        "redis://:secret@[::1]:6379/0",
        "valkey+unix:///run/socket",
        "redis+sentinel://:secret@one:26379,two/limits/1",
        "redis+cluster://one:7000,two:7001",
        "memory://",
        "shm://",
        "shm://name?records=1000",
        "shm:///absolute/path",
    ],
)
def test_every_storage_of_circuits_that_is_accepted_can_be_opened(folder: Path, uri: str) -> None:
    assert open_state_storage(load(folder, RESILIENCE_STATE_URI=uri).state_storage) is not None


@pytest.mark.parametrize(
    ("environment", "text", "there"),
    [
        ("development", "", True),
        ("testing", "", True),
        ("production", "", False),
        ("production", "true", True),
        ("development", "false", False),
        ("production", "none", False),
    ],
)
def test_the_demo_is_there_but_in_production_or_as_it_is_said(
    folder: Path, environment: str, text: str, there: bool
) -> None:
    for name in ("production", "testing"):
        (folder / f"{name}.yaml").write_text("log_level: info\n")
    assert there == load(folder, SEAWALL_ENVIRONMENT=environment, DEMO_PAGE=text).has_demo


def test_services_on_one_machine_keep_their_messages_apart(folder: Path) -> None:
    assert ["seawall-8000", "seawall-9000"] == [load(folder, PORT=port).channel_place for port in ("8000", "9000")]


def test_services_on_one_machine_keep_their_circuits_apart(folder: Path) -> None:
    places = [
        load(folder, PORT=port, RESILIENCE_STATE_URI=uri).state_storage
        for port in ("8010", "8020")
        for uri in ("", "none")
    ]
    assert ["shm://seawall-8010-state"] * 2 + ["shm://seawall-8020-state"] * 2 == places


def test_services_on_one_machine_count_their_limits_apart(folder: Path) -> None:
    places = [
        load(folder, PORT=port, RESILIENCE_STORAGE_URI=uri).limit_storage
        for port in ("8010", "8020")
        for uri in ("", "none")
    ]
    assert ["shm://seawall-8010"] * 2 + ["shm://seawall-8020"] * 2 == places


@pytest.mark.parametrize(
    "url", ["postgresql://u:a/b?c#d@[::1]:5432/d?x=y", "postgresql:///d", "postgresql://h", "postgresql://u@:5432/d"]
)
def test_every_database_that_is_accepted_can_be_read_by_what_opens_it(folder: Path, url: str) -> None:
    assert "postgresql" == make_url(load(folder, DATABASE_URL=url).database_url).drivername


def test_every_setting_tells_where_it_comes_from(folder: Path) -> None:
    (folder / "rate_limit").write_text("7/second", encoding="utf-8")
    (folder / "burst").write_text("8", encoding="utf-8")
    with (folder / "development.yaml").open("a", encoding="utf-8") as yaml:
        yaml.write("\nresilience_state_timeout: 0.1\nresilience_storage_timeout: 0.1\n")
    settings = load(
        folder, RESILIENCE_STORAGE_TIMEOUT="0.2", SECRETS_DIR=str(folder), RATE_LIMIT_BURST_FILE=str(folder / "burst")
    )
    assert ["config", "environment", "file", "file", "default"] == [
        settings.origin(name)
        for name in (
            "resilience_state_timeout", "resilience_storage_timeout", "rate_limit", "rate_limit_burst", "log_level"
        )
    ]  # fmt: skip
    assert settings == pickle.loads(pickle.dumps(settings)), "workers inherit it"
    made = Settings(token_secret=SecretStr(SECRET), port=8010)
    assert ["code", "default"] == [made.origin(name) for name in ("port", "log_level")]


HIDDEN = some.text(some.characters(codec="utf-8", exclude_characters="\0\r\n:"), min_size=0, max_size=60).map(
    lambda text: f"hid{text}den"
)
PLACES: tuple[str, ...] = (
    "TOKEN_SECRET",
    "TOKEN_SECRET_PREVIOUS",
    "RESILIENCE_ADMIN_TOKEN",
    "DATABASE_URL",
    "RESILIENCE_STORAGE_URI",
    "BACKENDS__demo",
    "BACKENDS",
    "PORT",
    "RATE_LIMIT",
)
FORMS: tuple[str, ...] = (
    "{}",
    "postgresql://user:{}@host/database",
    "postgresql://host/database?password={}",
    "redis://:{}@host",
    "http://user:{}@host",
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=HIDDEN, place=some.sampled_from(PLACES), form=some.sampled_from(FORMS), in_file=some.booleans())
def test_no_secret_is_ever_shown(folder: Path, value: str, place: str, form: str, in_file: bool) -> None:
    text = form.format(value)
    environ: dict[str, str] = {"TOKEN_SECRET": SECRET, "TOKEN_SECRET_PREVIOUS": OTHER}
    if in_file and "__" not in place:
        (folder / "pointed").write_text(text, encoding="utf-8")
        environ[f"{place}_FILE"] = str(folder / "pointed")
    else:
        environ[place] = text
    try:
        settings: Any = Settings.load(environ, folder)
    except SettingsError as error:
        shown = f"{error!r}{error}{error.__cause__}{error.__context__}"
    else:
        shown = f"{settings!r}{settings}"
    assert value not in shown
    assert json.dumps(value)[1:-1] not in shown
    assert SECRET not in shown
    assert OTHER not in shown
