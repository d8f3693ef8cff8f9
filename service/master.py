"""What the gunicorn master does for its workers: it reads the configuration once and keeps a folder for their sockets.

Workers inherit the settings by fork. Were each to read the files itself, a file that is being edited when a worker is
replaced at night would give one worker another configuration, or keep it from starting and take the service down.
Nothing here may import the application: the master is not patched by gevent. What only the application's parts can tell
of new settings is found out in a process of its own, before workers that work are given up for them.
"""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import structlog

from service.middleware.chain import refuse_unknown_names
from service.settings import Settings, SettingsError

__all__ = [
    "expect_workers",
    "load_settings",
    "open_peer_directory",
    "refuse_to_start",
    "remove_peer_directory",
    "settings",
    "whole_number",
]

PEER_DIRECTORY = "PEER_DIRECTORY"

TRIAL = """
import pickle, sys
from service.lifecycle import Lifecycle
from service.settings import SettingsError
from service.wiring import build_parts
try:
    build_parts(pickle.load(sys.stdin.buffer), lifecycle=Lifecycle())
except SettingsError as error:
    print(error)
"""
TRIAL_TIMEOUT = 20.0

_log = structlog.get_logger("service.master")
_settings: Settings | None = None
_own_peer_directory: Path | None = None


def settings() -> Settings:
    """The settings of this service: the ones that the master read, or read now where there is no master."""
    global _settings
    if _settings is None:
        _settings = _read()
    return _settings


def load_settings() -> Settings:
    """Read the configuration, as the master starts and at each reload.

    A start with a bad configuration ends with a message. A reload with one keeps the configuration that works and logs
    the message: ending then would take a running service down.
    """
    global _settings
    try:
        loaded = _read()
        if _settings is not None:
            _try_parts(loaded)
        _settings = loaded
    except SettingsError as error:
        if _settings is None:
            refuse_to_start(str(error))
        _log.error("configuration not reloaded, the previous one stays", reason=str(error))
    return _settings


def expect_workers(count: int) -> None:
    """Tell workers that start from now on how many there are: while limits count in each of them, each has its share."""
    global _settings
    _settings = settings().model_copy(update={"web_concurrency": count})


def _read() -> Settings:
    loaded = Settings.load()
    refuse_unknown_names(loaded.middleware_off)
    return loaded


def _try_parts(loaded: Settings) -> None:
    """Raise `SettingsError` when the application cannot be put together out of `loaded`."""
    try:
        trial = subprocess.run(  # noqa: S603 - this interpreter, with a program of this module's
            [sys.executable, "-c", TRIAL],
            input=pickle.dumps(loaded),
            stdout=subprocess.PIPE,
            check=False,  # what fails otherwise has other reasons than the settings
            timeout=TRIAL_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("configuration not tried out", reason=type(error).__name__)
        return
    if reason := trial.stdout.decode(errors="replace").strip():
        raise SettingsError(reason)


def refuse_to_start(reason: str) -> NoReturn:
    """End the process with a message and without a stack."""
    sys.exit(f"seawall does not start: {reason}")


def whole_number(name: str, default: int, *, least: int = 0, environ: Mapping[str, str] = os.environ) -> int:
    """A number from the environment, for what is gunicorn's and not the service's to know. Ends a start with a bad one."""
    text = environ.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        refuse_to_start(f"environment variable {name} must be a whole number from {least}")
    return int(text)


def open_peer_directory() -> Path:
    """The folder in which workers meet, made if need be: the configured one, or one named after this process.

    Ends the start when the folder exists and is not this user's alone. Workers find it in their settings and in the
    environment variable PEER_DIRECTORY.
    """
    global _settings, _own_peer_directory
    current = settings()
    directory = current.peer_directory
    if directory is None:
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        prefix = f"seawall-{os.geteuid()}-"
        _remove_abandoned(base, prefix)
        directory = base / f"{prefix}{os.getpid()}"
        _own_peer_directory = directory
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass  # checked below
    except OSError as error:
        refuse_to_start(f"{directory} cannot be made: {error.strerror}; set {PEER_DIRECTORY} to another")
    _refuse_foreign(directory)
    for leftover in directory.glob("*.sock"):  # of a master that had the same process id, as in every container
        leftover.unlink(missing_ok=True)
    os.environ[PEER_DIRECTORY] = str(directory)
    _settings = current.model_copy(update={"peer_directory": directory})
    return directory


def remove_peer_directory() -> None:
    """Take away the folder, if it is the one named after this process."""
    if _own_peer_directory is not None:
        shutil.rmtree(_own_peer_directory, ignore_errors=True)


def _remove_abandoned(base: Path, prefix: str) -> None:
    """Remove this user's folders in `base` whose masters were killed before they could."""
    for folder in base.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix)
        if pid.isdecimal() and folder.lstat().st_uid == os.geteuid() and not _lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no process id at all
        return True
    return True


def _refuse_foreign(directory: Path) -> None:
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        refuse_to_start(
            f"{directory} must be a folder of this user's that nobody else can enter; "
            f"remove it, chmod 700 it, or set {PEER_DIRECTORY} to another"
        )
