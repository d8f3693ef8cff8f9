from __future__ import annotations

import re
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import launcher
from service.administration import Accounts
from service.data.users import SqlUserRepository
from service.launcher import CannotStart, instructions, make_plan, run
from service.services.users import parse_new_user
from service.settings import Settings, SettingsError
from tests.support.database import migrated_sqlite, quick_hasher
from tests.support.scripted_server import Conversation, ScriptedServer

CONFIG = Path(__file__).parents[3] / "config"
SECRET = "a secret of this test, long enough to be one"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as after a fresh clone, in which the test runs."""
    shutil.copytree(CONFIG, tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def accounts(workplace: Path) -> Iterator[Accounts]:
    (workplace / "var").mkdir()
    database, hasher = migrated_sqlite(workplace), quick_hasher()
    yield Accounts(SqlUserRepository(database), hasher)
    hasher.close()
    database.close()


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def free_ports(count: int) -> list[str]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class TestPlan:
    def test_makes_what_is_not_configured(self) -> None:
        plan = make_plan({})

        assert plan.settings.environment == "development"
        assert 8002 == plan.demo_port
        assert {"demo": "http://127.0.0.1:8002"} == plan.settings.backends
        assert "http://127.0.0.1:8002" == plan.environment["BACKENDS__demo"]
        assert plan.settings.resilience_admin_token is not None

    def test_makes_secrets_anew_for_each_run(self) -> None:
        first, second = (
            make_plan({}).environment,
            make_plan({"TOKEN_SECRET": "", "RESILIENCE_ADMIN_TOKEN": ""}).environment,
        )

        for name in ("TOKEN_SECRET", "RESILIENCE_ADMIN_TOKEN"):
            assert len(first[name]) > 40
            assert first[name] != second[name]

    def test_keeps_what_is_configured(self) -> None:
        given = {
            "TOKEN_SECRET": SECRET,
            "RESILIENCE_ADMIN_TOKEN": SECRET,
            "BACKENDS__shop": "http://shop.example",
            "PORT": "9000",
        }
        plan = make_plan(given)

        assert given == plan.environment
        assert plan.demo_port is None
        assert {"shop": "http://shop.example"} == plan.settings.backends

    def test_puts_the_demo_backend_where_it_is_told(self) -> None:
        assert "127.0.0.1:9002" == make_plan({"DEMO_PORT": "9002"}).demo_address

    @pytest.mark.parametrize("name", ["TOKEN_SECRET", "RESILIENCE_ADMIN_TOKEN"])
    def test_makes_up_no_secret_that_a_file_gives(self, name: str, workplace: Path) -> None:
        (workplace / "config" / "development.yaml").write_text(f"{name.lower()}: {SECRET}")

        plan = make_plan({})

        assert SECRET == getattr(plan.settings, name.lower()).get_secret_value()
        assert name not in plan.environment
        assert plan.settings == Settings.load(plan.environment)

    def test_makes_up_no_secret_that_a_secret_file_gives(self, workplace: Path) -> None:
        (workplace / "secret").write_text(SECRET)

        plan = make_plan({"TOKEN_SECRET_FILE": "secret"})

        assert SECRET == plan.settings.token_secret.get_secret_value()
        assert "TOKEN_SECRET" not in plan.environment

    def test_opens_no_admin_listener_that_is_not_wanted(self) -> None:
        plan = make_plan({"RESILIENCE_ADMIN_TOKEN": "none"})

        assert plan.settings.resilience_admin_token is None
        assert "none" == plan.environment["RESILIENCE_ADMIN_TOKEN"]

    @pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "1.5"])
    def test_refuses_a_demo_port_that_is_none(self, port: str) -> None:
        with pytest.raises(CannotStart, match="DEMO_PORT must be a port from 1 to 65535"):
            make_plan({"DEMO_PORT": port})

    def test_makes_nothing_up_in_production(self) -> None:
        with pytest.raises(CannotStart, match=r"python -m gunicorn -c gunicorn\.conf\.py"):
            make_plan({"SEAWALL_ENVIRONMENT": "production", "TOKEN_SECRET": SECRET})

    def test_passes_on_what_is_wrong_with_the_configuration(self) -> None:
        with pytest.raises(SettingsError, match="port"):
            make_plan({"PORT": "http"})

    @pytest.mark.parametrize(
        ("host", "expected"),
        [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]"), ("name", "name")],
    )
    def test_names_an_address_that_can_be_called_from_here(self, host: str, expected: str) -> None:
        plan = make_plan({"HOST": host})

        assert (f"http://{expected}:8000", f"http://{expected}:8001") == (plan.public_url, plan.admin_url)


class TestPorts:
    @pytest.mark.parametrize("variable", ["PORT", "ADMIN_PORT", "DEMO_PORT"])
    def test_a_taken_port_is_named_with_the_setting_that_chooses_another(
        self, variable: str, taken: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ports = dict(zip(("PORT", "ADMIN_PORT", "DEMO_PORT"), free_ports(3), strict=True))

        assert 1 == run({**ports, variable: str(taken)})

        said = capsys.readouterr().err
        assert f"port {taken} is in use: set {variable}=..., e.g. {variable}=" in said
        suggested = re.search(rf"{variable}=(\d+) make run", said)
        assert suggested is not None
        assert int(suggested[1]) not in (taken, 0)

    def test_two_that_are_the_same_are_noticed(self, capsys: pytest.CaptureFixture[str]) -> None:
        first, second = free_ports(2)

        assert 1 == run({"PORT": first, "ADMIN_PORT": second, "DEMO_PORT": first})
        assert f"port {first} is in use: set DEMO_PORT" in capsys.readouterr().err

    def test_an_address_of_another_machine_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert 1 == run({"HOST": "192.0.2.1"})
        assert "HOST=192.0.2.1 cannot be listened on" in capsys.readouterr().err


def test_bad_configuration_ends_with_its_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == run({"RATE_LIMIT": "plenty"})

    said = capsys.readouterr().err
    assert said.startswith("seawall does not run: cannot load the settings:")
    assert "rate_limit (environment variable RATE_LIMIT): must be a rate such as" in said
    assert "Traceback" not in said


def test_says_where_it_cannot_write(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "var").write_text("in the way")
    port, admin_port, demo_port = free_ports(3)

    assert 1 == run({"PORT": port, "ADMIN_PORT": admin_port, "DEMO_PORT": demo_port})
    assert "start where you may write" in capsys.readouterr().err


def test_the_demo_backend_gets_nothing_but_what_a_program_needs() -> None:
    needed = {"PATH": "/bin", "HOME": "/root", "LANG": "C", "LC_ALL": "C", "PYTHONPATH": "/x", "VIRTUAL_ENV": "/v"}
    secret = {
        "GUNICORN_CMD_ARGS": "--reload",
        "DATABASE_URL": "postgresql://user:password@host/name",
        "RESILIENCE_STORAGE_URI": "redis://:password@host",
        "TOKEN_SECRET_PREVIOUS": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }

    environment = launcher._demo_backend(make_plan(needed | secret)).environment

    assert needed == environment


@pytest.mark.parametrize(("host", "listening"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1")])
def test_asks_where_the_service_listens_whether_it_is_ready(host: str, listening: str) -> None:
    def script(conversation: Conversation) -> None:
        conversation.read_request()
        conversation.answer()

    with ScriptedServer(script, host=listening) as server:
        assert launcher._is_ready(make_plan({"HOST": host, "PORT": str(server.port)}))


class TestUser:
    def test_is_made_with_a_password_that_only_this_user_can_read(self, accounts: Accounts) -> None:
        password = launcher._prepare_user(accounts)

        assert password is not None
        assert accounts.has_password("demo", password)
        assert password == launcher.PASSWORD_FILE.read_text().strip()
        assert 0o600 == stat.S_IMODE(launcher.PASSWORD_FILE.stat().st_mode)

    def test_gets_a_password_where_an_interrupted_start_left_none(self, accounts: Accounts) -> None:
        launcher.PASSWORD_FILE.write_text("")

        password = launcher._prepare_user(accounts)

        assert password is not None
        assert password == launcher.PASSWORD_FILE.read_text().strip()
        assert 0o600 == stat.S_IMODE(launcher.PASSWORD_FILE.stat().st_mode)
        assert [launcher.PASSWORD_FILE] == list(launcher.WORKPLACE.glob("demo-password*"))

    def test_keeps_the_password_in_later_runs(self, accounts: Accounts) -> None:
        assert launcher._prepare_user(accounts) == launcher._prepare_user(accounts)

    def test_keeps_the_password_when_the_database_is_made_anew(self, accounts: Accounts) -> None:
        launcher.PASSWORD_FILE.write_text("chosen by somebody\n")

        assert "chosen by somebody" == launcher._prepare_user(accounts)

    @pytest.mark.parametrize("stored", [None, "no longer right"])
    def test_claims_no_password_that_does_not_hold(self, stored: str | None, accounts: Accounts) -> None:
        accounts.add(
            parse_new_user({"name": "demo", "email": "a@b", "role": "admin", "password": "chosen by somebody"})
        )
        if stored:
            launcher.PASSWORD_FILE.write_text(stored)

        assert launcher._prepare_user(accounts) is None


class TestInstructions:
    def test_fit_a_terminal_of_80_columns(self) -> None:
        text = instructions(make_plan({"PORT": "18000", "ADMIN_PORT": "18001", "DEMO_PORT": "18002"}), "x" * 16)

        assert 80 >= max(map(len, text.splitlines()))

    def test_hold_every_address_and_secret_that_is_needed(self) -> None:
        plan = make_plan({"PORT": "9000", "ADMIN_PORT": "9001", "DEMO_PORT": "9002", "RESILIENCE_ADMIN_TOKEN": SECRET})

        text = instructions(plan, "the password")

        expected = ("http://127.0.0.1:9000", "http://127.0.0.1:9001", "http://127.0.0.1:9002", SECRET, "the password")
        assert [] == [needed for needed in expected if needed not in text]
        assert ["1.", "2.", "3.", "4."] == re.findall(r"^\d\.", text, re.MULTILINE)

    def test_name_the_demo_page_where_there_is_one(self) -> None:
        with_it, without = (instructions(make_plan({"DEMO_PAGE": said}), None) for said in ("true", "false"))

        assert re.search(r"^  demo page +http://127\.0\.0\.1:8000/$", with_it, re.MULTILINE)
        assert "demo page" not in without

    def test_call_a_configured_backend_without_breaking_it(self) -> None:
        text = instructions(make_plan({"BACKENDS__shop": "http://shop.example"}), "the password")

        assert "/api/v1/backends/shop/hello" in text
        assert "failure_rate" not in text
        assert "demo backend" not in text

    def test_say_when_the_password_is_not_known(self) -> None:
        assert "chosen earlier; var/demo-password does not hold it" in instructions(make_plan({}), None)
