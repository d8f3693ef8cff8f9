"""Settings from the environment: what is accepted, what is refused, and in which words."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.errors import LongConnError
from longconn.settings import PREFIX, Settings, SettingsError

VARIABLES = [f"{PREFIX}{field.name.upper()}" for field in fields(Settings)]


def read(**variables: str) -> Settings:
    return Settings.from_environment({f"{PREFIX}{name.upper()}": text for name, text in variables.items()})


def problems_of(**variables: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        read(**variables)
    return caught.value.problems


def refusal(environ: dict[str, str]) -> str | None:
    try:
        Settings.from_environment(environ)
    except SettingsError as error:
        return str(error)
    return None


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings() == Settings.from_environment({"PATH": "/bin", "WEB_CONCURRENCY": "2"})


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings()

    assert (5.0, 10.0, 30.0, 100.0, 30.0, 100.0, 0.0, 75.0) == (
        settings.handshake_timeout,
        settings.head_timeout,
        settings.body_timeout,
        settings.body_rate,
        settings.write_timeout,
        settings.write_rate,
        settings.request_timeout,
        settings.idle_timeout,
    )
    assert (10_000, 0, 64 * 1024 * 1024, (), 32, "tuned") == (
        settings.max_requests_per_connection,
        settings.max_connections,
        settings.head_memory,
        settings.reserved_listeners,
        settings.reserved_connections,
        settings.collector,
    )


def test_every_default_is_accepted_when_it_is_given_as_text() -> None:
    plain = {field.name: str(field.default) for field in fields(Settings) if field.default != ()}

    assert Settings() == read(**plain)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().idle_timeout = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(("text", "expected"), [("3", 3.0), ("0.25", 0.25), (".5", 0.5), (" 7.0 ", 7.0)])
def test_seconds_are_decimal_numbers(text: str, expected: float) -> None:
    assert expected == read(head_timeout=text).head_timeout


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1", 1), ("64K", 65_536), ("10M", 10_485_760), ("1g", 1 << 30), ("2MiB", 2 << 20), ("1kB", 1_024)],
)
def test_sizes_have_binary_suffixes(text: str, expected: int) -> None:
    assert expected == read(max_body=text).max_body


def test_reserved_listeners_are_addresses_with_commas_between() -> None:
    expected = ("127.0.0.1:8001", "unix:/run/admin.sock", "[::1]:8001", "fd://3", "tcp://localhost:80", ":9000")

    assert expected == read(reserved_listeners=" , ".join(expected)).reserved_listeners


@pytest.mark.parametrize("text", ["a b", "host:65536", "127.0.0.1:8001,,", "host:port", "unix:", "http://host/path"])
def test_what_is_no_bind_address_is_refused(text: str) -> None:
    (problem,) = problems_of(reserved_listeners=text)

    assert problem.startswith(f"LONGCONN_RESERVED_LISTENERS={text!r}: takes bind addresses as given to gunicorn")


def test_an_empty_variable_counts_as_absent() -> None:
    assert Settings() == read(head_timeout="", max_body="  ", reserved_listeners="", collector="")


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("head_timeout", "0", "takes seconds from 0.001 to 3,600"),
        ("head_timeout", "soon", "takes seconds from 0.001 to 3,600"),
        ("head_timeout", "-1", "takes seconds from 0.001 to 3,600"),
        ("head_timeout", "nan", "takes seconds from 0.001 to 3,600"),
        ("head_timeout", "1e3", "takes seconds from 0.001 to 3,600"),
        ("head_timeout", "1_0", "takes seconds from 0.001 to 3,600"),
        ("idle_timeout", "86401", "takes seconds from 0.001 to 86,400, or 0: no keep-alive"),
        ("max_connections", "2.0", "takes a whole number from 1 to 10,000,000, or 0: what the file descriptors allow"),
        (
            "max_connections",
            "\u0664",
            "takes a whole number from 1 to 10,000,000, or 0: what the file descriptors allow",
        ),
        ("body_rate", "0.5", "takes a number from 1 to 1,000,000,000, or 0: no minimum"),
        ("collector", "off", "takes tuned or stock"),
        (
            "head_memory",
            "1K",
            "takes a whole number of bytes (K, M, G and T are understood: 64K, 10M) from 64K to 1T",
        ),
    ],
)
def test_a_value_that_is_not_accepted_is_named_with_what_is(name: str, text: str, accepted: str) -> None:
    assert (f"LONGCONN_{name.upper()}={text!r}: {accepted}",) == problems_of(**{name: text})


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("LONGCONN_IDLE_TIMOUT", "LONGCONN_IDLE_TIMEOUT"),
        ("LONGCONN_MAX_CONNECTION", "LONGCONN_MAX_CONNECTIONS"),
        ("LONGCONN_HEADTIMEOUT", "LONGCONN_HEAD_TIMEOUT"),
        ("LONGCONN_linger", "LONGCONN_LINGER"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_known_one(variable: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: "1"})

    assert (f"{variable}: there is no such setting; the nearest is {nearest}",) == caught.value.problems


@pytest.mark.parametrize("variable", ["LONGCONN_", "LONGCONN_\u00e4", "LONGCONN_Q", "LONGCONN__"])
def test_any_unknown_name_is_refused_also_with_no_value(variable: str) -> None:
    with pytest.raises(SettingsError, match="there is no such setting; the nearest is LONGCONN_"):
        Settings.from_environment({variable: ""})


def test_all_problems_are_told_at_once() -> None:
    problems = problems_of(collector="x", head_timeout="x", idle_timout="x")

    assert ["LONGCONN_COLLECTOR='x'", "LONGCONN_HEAD_TIMEOUT='x'", "LONGCONN_IDLE_TIMOUT"] == [
        problem.partition(":")[0] for problem in problems
    ]


def test_the_error_is_this_packages_and_a_value_error() -> None:
    with pytest.raises(ValueError, match="LONGCONN_LINGER") as caught:
        read(linger="x")

    assert isinstance(caught.value, LongConnError)


def test_gunicorns_own_settings_supply_defaults() -> None:
    settings = Settings.from_environment({}, defaults={"idle_timeout": 65, "max_connections": 500})

    assert (65.0, float, 500) == (settings.idle_timeout, type(settings.idle_timeout), settings.max_connections)


def test_the_environment_overrules_such_defaults() -> None:
    settings = Settings.from_environment({"LONGCONN_IDLE_TIMEOUT": "5"}, defaults={"idle_timeout": 65.0, "linger": 1.0})

    assert (5.0, 1.0) == (settings.idle_timeout, settings.linger)


def test_an_empty_variable_leaves_such_a_default() -> None:
    settings = Settings.from_environment({"LONGCONN_IDLE_TIMEOUT": ""}, defaults={"idle_timeout": 65.0})

    assert 65.0 == settings.idle_timeout


def test_a_default_may_be_text_as_in_the_environment() -> None:
    settings = Settings.from_environment({}, defaults={"max_body": "1M", "reserved_listeners": ["127.0.0.1:8001"]})

    assert (1 << 20, ("127.0.0.1:8001",)) == (settings.max_body, settings.reserved_listeners)


@pytest.mark.parametrize(
    ("defaults", "problem"),
    [
        ({"idle_timeout": -1}, "idle_timeout=-1: takes seconds from 0.001 to 86,400, or 0: no keep-alive"),
        ({"keep_alive": 2}, "keep_alive: there is no such setting; the nearest is tcp_keepalive"),
        ({"max_connections": True}, "max_connections=True: takes a whole number"),
        ({"reserved_listeners": 3}, "reserved_listeners=3: takes bind addresses"),
        ({"reserved_listeners": [3]}, "reserved_listeners=[3]: takes bind addresses"),
        ({"idle_timeout": None}, "idle_timeout=None: takes seconds"),
    ],
)
def test_a_wrong_default_is_named_as_it_was_given(defaults: dict[str, object], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({}, defaults=defaults)

    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"head_timeout": float("inf")}, "head_timeout=inf: takes seconds"),
        ({"head_timeout": "3"}, "head_timeout='3': takes seconds"),
        ({"max_body": 1.5}, "max_body=1.5: takes a whole number"),
        ({"collector": "none"}, "collector='none': takes tuned or stock"),
    ],
)
def test_settings_made_by_hand_are_checked_too(values: dict[str, object], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**values)  # type: ignore[arg-type]

    assert str(caught.value).startswith(problem)


def test_a_burst_without_a_rate_is_refused() -> None:
    assert ("LONGCONN_ACCEPT_BURST=5: means nothing without LONGCONN_ACCEPT_RATE",) == problems_of(accept_burst="5")


def test_a_reserve_that_nobody_uses_takes_nothing() -> None:
    assert 10 == read(max_connections="10").max_connections


def test_the_description_has_a_row_for_every_variable_in_order() -> None:
    rows = Settings.describe().splitlines()[2:]

    assert [f"`{variable}`" for variable in VARIABLES] == [row.split("|")[1].strip() for row in rows]


def test_every_row_of_the_description_has_five_filled_columns() -> None:
    for row in Settings.describe().splitlines()[2:]:
        _, variable, default, unit, accepted, meaning, _ = row.split("|")

        assert all(cell.strip() for cell in (variable, default, accepted, meaning))
        assert unit.strip() or "COLLECTOR" in variable


def test_the_description_shows_defaults_as_one_writes_them() -> None:
    table = Settings.describe()

    assert "| `LONGCONN_HEAD_MEMORY` | 64M | bytes | 64K to 1T |" in table
    assert "| `LONGCONN_IDLE_TIMEOUT` | 75 | s | 0.001 to 86,400; 0: no keep-alive |" in table


@given(st.sampled_from(VARIABLES), st.text(max_size=20) | st.from_regex(r"[0-9.]{1,25}[KMGTkmgt]?", fullmatch=True))
def test_any_text_is_either_accepted_or_refused_by_name(variable: str, text: str) -> None:
    told = refusal({variable: text})

    assert told is None or told.startswith(f"{variable}=")


def test_origins_are_kept_as_browsers_write_them() -> None:
    settings = Settings.from_environment(
        {"LONGCONN_ALLOWED_ORIGINS": "https://App.example, http://*.example.com:8080/,*"}
    )
    assert ("https://app.example", "http://*.example.com:8080", "*") == settings.allowed_origins


@pytest.mark.parametrize(
    "text",
    ["app.example", "https://", "ftp://a", "https://a:99999", "https://a/path", "https://*", "https://a.*.b", "null"],
)
def test_what_is_no_origin_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match=r"takes origins such as https://app\.example"):
        Settings.from_environment({"LONGCONN_ALLOWED_ORIGINS": text})


@pytest.mark.parametrize("text", ["shop", "shop-8080.channels", "/run/shop/channels"])
def test_channels_are_a_name_or_a_folder(text: str) -> None:
    assert text == Settings.from_environment({"LONGCONN_CHANNELS": text}).channels


@pytest.mark.parametrize("text", ["a/b", "../x", ".", "a" * 49, "a b"])
def test_channels_are_not_anything_else(text: str) -> None:
    with pytest.raises(SettingsError, match="takes a name of at most 48 letters"):
        Settings.from_environment({"LONGCONN_CHANNELS": text})
