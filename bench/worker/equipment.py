"""What the comparison needs and this project does not: the peers' own environment, and small programmes that are compiled.

Whatever cannot be had is named with the reason, and left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["BUILT", "PEERS", "ROOT", "Equipment", "build_go", "compile_c", "pinned", "prepare"]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PEERS = ROOT / ".venv" / "peers"
BUILT = ROOT / "var" / "bench" / "build"
SHARED = ("flask", "werkzeug", "gevent", "gunicorn")
"""Installed for the peers too, in our versions: the application must be the same."""

PIP_TIME = 600.0
"""Seconds for one package: some are compiled."""

COMPILE_TIME = 300.0


@dataclass(slots=True)
class Equipment:
    """What there is. `missing` says of the rest why it is not there."""

    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def program(self, name: str) -> str:
        """The path of a programme of the peers' environment."""
        return str(PEERS / "bin" / name)

    def built(self, name: str) -> str:
        """The path of something that was compiled."""
        return str(BUILT / name)

    def lacks(self, *names: str) -> str:
        """Why the first of these that is missing is so; empty when all are there."""
        return next((f"{name}: {self.missing[name]}" for name in names if name in self.missing), "")


def pinned(text: str) -> dict[str, str]:
    """Names and versions in a requirements file, comments aside. Raises ValueError at a line that pins nothing."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    found: dict[str, str] = {}
    for line in filter(None, lines):
        name, equals, wanted = line.partition("==")
        if not equals or not wanted:
            raise ValueError(f"{line!r} pins no version")
        found[name.strip().lower()] = wanted.strip()
    return found


def prepare(*, peers: bool) -> Equipment:
    """Compile whatever is not there yet; with `peers`, install the peers' environment too."""
    equipment = Equipment()
    compile_c(equipment, "storm", HERE / "native" / "storm.c")
    compile_c(equipment, "allocations.so", HERE / "native" / "allocations.c", library=True)
    build_go(equipment, "gin", HERE / "peers" / "gin" / "main.go")
    if peers:
        _install_all(equipment)
    if shutil.which("wrk") is None:
        equipment.missing["wrk"] = "not on the PATH (Debian: apt-get install wrk)"
    return equipment


def _install_all(equipment: Equipment) -> None:
    wanted = pinned((HERE / "peers" / "requirements.txt").read_text(encoding="utf-8"))
    if not (PEERS / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True, timeout=PIP_TIME)
    for name in SHARED:
        try:
            wanted[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover - this checkout runs on them
            continue
    installed = _installed()
    for name, number in wanted.items():
        if installed.get(name) == number or _install(equipment, f"{name}=={number}"):
            equipment.versions[name] = number


def _installed() -> dict[str, str]:
    listed = subprocess.run(
        [str(PEERS / "bin" / "python"), "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PIP_TIME,
    )
    return pinned("\n".join(line for line in listed.stdout.splitlines() if "==" in line))


def _install(equipment: Equipment, requirement: str) -> bool:
    print(f"installing {requirement} into {PEERS.relative_to(ROOT)} ...", file=sys.stderr, flush=True)
    command = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    reason = _reason([*command, requirement], timeout=PIP_TIME)
    if reason:
        equipment.missing[requirement.partition("==")[0]] = reason
    return not reason


def compile_c(equipment: Equipment, name: str, source: Path, *, library: bool = False) -> None:
    """Compile a programme, or a library that Python can import, unless what is there is newer than its source."""
    options = ["-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"] if library else []
    _compile(equipment, name, source, [shutil.which("cc") or "cc", "-O2", *options, "-o", "{to}", "{from}"])


def build_go(equipment: Equipment, name: str, source: Path) -> None:
    """Build a programme in Go. Debian puts Go's libraries where a module-less build looks for them."""
    go = shutil.which("go") or "go"
    debian = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
    _compile(equipment, name, source, [go, "build", "-o", "{to}", "{from}"], debian)
    if name not in equipment.missing:
        equipment.versions["go"] = _first(r"go(\d\S*)", [go, "version"])


def _compile(
    equipment: Equipment, name: str, source: Path, command: list[str], variables: dict[str, str] | None = None
) -> None:
    BUILT.mkdir(parents=True, exist_ok=True)
    built = BUILT / name
    if built.exists() and built.stat().st_mtime >= source.stat().st_mtime:
        return
    filled = [part.replace("{to}", str(built)).replace("{from}", str(source)) for part in command]
    reason = _reason(filled, timeout=COMPILE_TIME, variables=variables or {})
    if reason:
        equipment.missing[name] = reason


def _reason(command: list[str], *, timeout: float, variables: dict[str, str] | None = None) -> str:
    """Run a command; why it failed, in a line, or nothing."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **(variables or {})},
        )
    except FileNotFoundError:
        return f"there is no {Path(command[0]).name} on this machine"
    except subprocess.TimeoutExpired:
        return f"not done within {timeout:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()] or lines or [f"exit {done.returncode}"]
    return told[-1][:200]


def _first(pattern: str, command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIME, check=False)
    found = re.search(pattern, done.stdout)
    return found[1] if found else "unknown"
