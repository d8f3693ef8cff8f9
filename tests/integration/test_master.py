from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service import master
from service.settings import Settings, SettingsError

SECRET = "x" * 32


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master, "_settings", None)
    monkeypatch.setattr(master, "_own_peer_directory", None)
    monkeypatch.setenv("PEER_DIRECTORY", "")


def configure(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """What reading the configuration gives from now on."""
    monkeypatch.setattr(Settings, "load", lambda: Settings(token_secret=SECRET, **values))  # type: ignore[arg-type]


def break_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Settings:
        raise SettingsError("port (environment variable PORT): must be a number")

    monkeypatch.setattr(Settings, "load", load)


def test_the_configuration_is_read_once_and_then_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, port=1111)
    first = master.settings()
    configure(monkeypatch, port=2222)
    assert master.settings() is first


def test_a_reload_reads_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, port=1111)
    master.load_settings()
    configure(monkeypatch, port=2222)
    assert 2222 == master.load_settings().port
    assert 2222 == master.settings().port


def test_a_start_with_a_bad_configuration_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    break_configuration(monkeypatch)
    with pytest.raises(SystemExit, match=r"seawall does not start: port \(environment variable PORT\)"):
        master.load_settings()


def test_a_start_with_an_unknown_middleware_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, middleware_off=("nonsense",))
    with pytest.raises(SystemExit, match="middleware_off: no middleware is named nonsense"):
        master.load_settings()


def test_a_reload_with_a_bad_configuration_keeps_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, port=1111)
    before = master.load_settings()
    break_configuration(monkeypatch)
    with capture_logs() as logged:
        assert master.load_settings() is before
    assert ["error"] == [entry["log_level"] for entry in logged]
    assert "PORT" in logged[0]["reason"]


@pytest.mark.parametrize(("environ", "expected"), [({}, 5), ({"N": ""}, 5), ({"N": "0"}, 0), ({"N": "17"}, 17)])
def test_a_number_comes_from_the_environment_or_is_the_default(environ: dict[str, str], expected: int) -> None:
    assert expected == master.whole_number("N", 5, environ=environ)


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "٣", " 7", "1_000", "1"])
def test_a_number_that_is_none_ends_the_start(text: str) -> None:
    with pytest.raises(SystemExit, match="environment variable N must be a whole number from 2"):
        master.whole_number("N", 5, least=2, environ={"N": text})


IMPORTS = """
import sys
import longconn.worker, service.hosting, service.logs, service.master, service.processors
late = {"flask", "sqlalchemy", "psycopg", "urllib3", "redis", "prometheus_client", "service.app", "service.wiring"}
early = late & sys.modules.keys()
sys.exit(f"imported before gevent patches: {early}" if early else 0)
"""


def test_what_the_master_imports_does_not_bring_the_application_with_it() -> None:
    outcome = subprocess.run([sys.executable, "-c", IMPORTS], check=False, capture_output=True, text=True)
    assert (0, "") == (outcome.returncode, outcome.stderr)


def test_workers_meet_in_a_folder_named_after_the_user_and_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(monkeypatch)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = master.open_peer_directory()
    assert tmp_path / f"seawall-{os.geteuid()}-{os.getpid()}" == folder
    assert 0o700 == folder.stat().st_mode & 0o777
    assert folder == master.settings().peer_directory
    assert str(folder) == os.environ["PEER_DIRECTORY"]
    master.remove_peer_directory()
    assert not folder.exists()


def test_workers_that_start_later_are_told_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch)
    master.expect_workers(7)
    assert 7 == master.settings().web_concurrency


def test_a_configured_folder_is_made_and_not_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, peer_directory=tmp_path / "peers")
    assert tmp_path / "peers" == master.open_peer_directory()
    master.remove_peer_directory()
    assert (tmp_path / "peers").is_dir()


def test_sockets_of_an_earlier_master_with_this_process_id_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(monkeypatch, peer_directory=tmp_path)
    tmp_path.chmod(0o700)
    (tmp_path / "123.sock").touch()
    master.open_peer_directory()
    assert [] == list(tmp_path.iterdir())


def test_a_folder_that_others_can_enter_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, peer_directory=tmp_path)
    tmp_path.chmod(0o750)
    with pytest.raises(SystemExit, match="nobody else can enter"):
        master.open_peer_directory()


def test_a_link_to_a_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    configure(monkeypatch, peer_directory=tmp_path / "link")
    with pytest.raises(SystemExit, match="nobody else can enter"):
        master.open_peer_directory()


def test_a_folder_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, peer_directory=tmp_path / "missing" / "peers")
    with pytest.raises(SystemExit, match="cannot be made"):
        master.open_peer_directory()


def test_a_reload_is_tried_out_before_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, port=1111)
    before = master.load_settings()
    unusable = before.model_copy(update={"rate_limit": "1/second;2/second"})  # as if the settings had let it pass
    monkeypatch.setattr(Settings, "load", lambda: unusable)
    with capture_logs() as logged:
        assert master.load_settings() is before
    assert "rate_limit" in logged[0]["reason"]


def test_a_trial_that_takes_too_long_does_not_keep_the_settings_out(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, port=1111)
    master.load_settings()
    configure(monkeypatch, port=2222)
    monkeypatch.setattr(master, "TRIAL_TIMEOUT", 0.01)
    with capture_logs() as logged:
        assert 2222 == master.load_settings().port
    assert ["TimeoutExpired"] == [entry["reason"] for entry in logged]


def test_folders_of_masters_that_are_gone_are_removed_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(monkeypatch)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    user = os.geteuid()
    kept = {f"seawall-{user}-{os.getppid()}", f"seawall-{user}-notes", f"seawall-{user}1-{gone.pid}", "other"}
    for name in {*kept, f"seawall-{user}-{gone.pid}"}:
        (tmp_path / name).mkdir()
    folder = master.open_peer_directory()
    assert kept | {folder.name} == {each.name for each in tmp_path.iterdir()}
    master.remove_peer_directory()
