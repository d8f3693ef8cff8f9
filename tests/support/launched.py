"""Everything that `make run` starts, on free ports and in a folder of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from longconn.channels import places
from resilience.storage.shm import SharedMemoryStorage
from resilience.storage.state_shm import SharedMemoryStateStorage

__all__ = ["Answer", "Launched", "free_ports", "inherited_environment", "is_alive", "launched", "prepare_folder"]

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
LAST_LINE = "Ctrl-C stops everything."
# What else is set where the tests run must not reach what they start: it may name a database that somebody needs.
INHERITED = re.compile(r"PATH|HOME|TMPDIR|TZ|LANG|VIRTUAL_ENV|(LC_|PYTHON|COVERAGE).*")


@dataclass(frozen=True, slots=True)
class Answer:
    """One response, read to its end."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The first field of that name."""
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)


class Launched:
    """A running `python -m service run`. What it prints is collected in `text`."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.port, self.admin_port, self.demo_port = free_ports(3)
        # Sockets lie in it, whose paths must be short.
        self._runtime_folder = tempfile.TemporaryDirectory(prefix="seawall-")
        environment = {
            **inherited_environment(),
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": self._runtime_folder.name,
            "PORT": str(self.port),
            "ADMIN_PORT": str(self.admin_port),
            "DEMO_PORT": str(self.demo_port),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", "run"],
            cwd=folder,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def text(self) -> str:
        """What has been printed, by the launcher and by the service."""
        return "".join(self._lines)

    @property
    def commands(self) -> list[str]:
        """The commands that it says to try."""
        blocks = re.findall(r"^\d\. .*\n\n((?:   .*\n|\n(?=   ))+)", self.text, re.MULTILINE)
        return ["\n".join(line.removeprefix("   ") for line in block.splitlines()) for block in blocks]

    def value(self, label: str) -> str:
        """What is printed beside `label` in the list of addresses."""
        found = re.search(rf"^  {label}  +(\S.*)$", self.text, re.MULTILINE)
        assert found is not None, f"{label} is not in:\n{self.text}"
        return found[1]

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        port: int | None = None,
    ) -> Answer:
        """One request on a connection of its own, to the public listener unless another port is given."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=PATIENCE)
        ) as connection:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())

    def sign_in(self) -> Mapping[str, str]:
        """The header field that speaks for the demo user."""
        document = {"username": "demo", "password": self.value("password")}
        headers = {"Content-Type": "application/json"}
        answer = self.ask("POST", "/api/v1/auth/token", body=json.dumps(document).encode(), headers=headers)
        return {"Authorization": f"Bearer {answer.document['access_token']}"}

    def circuit(self, name: str) -> Any:
        """What the admin endpoint says about one circuit."""
        headers = {"Authorization": f"Bearer {self.value('admin token')}"}
        return self.ask("GET", f"/admin/circuits/{name}", headers=headers, port=self.admin_port).document["circuit"]

    def wait_until_ready(self) -> None:
        """Return when it has said how to try it."""
        deadline = time.monotonic() + PATIENCE
        while LAST_LINE not in self.text:
            assert self.process.poll() is None, f"it ended instead:\n{self.text}"
            assert time.monotonic() < deadline, f"it was not ready:\n{self.text}"
            time.sleep(0.01)

    def descendants(self) -> list[int]:
        """The processes below it, whatever their sessions."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found[1:]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and wait for the end. The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end. The exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def close(self) -> None:
        """End what is left."""
        try:
            self.stop()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(PATIENCE)
            self._reader.join(PATIENCE)
            if self.process.stdout is not None:
                self.process.stdout.close()
            self._runtime_folder.cleanup()
            # These outlive the service.
            SharedMemoryStorage(f"shm://seawall-{self.port}").path.unlink(missing_ok=True)
            SharedMemoryStateStorage(f"shm://seawall-{self.port}-state").path.unlink(missing_ok=True)
            shutil.rmtree(places.folder(f"seawall-{self.port}"), ignore_errors=True)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)


@contextlib.contextmanager
def launched(
    folder: Path, variables: Mapping[str, str] = MappingProxyType({}), *, ready: bool = True
) -> Iterator[Launched]:
    """Started in `folder`, ready unless told otherwise, and ended on exit."""
    run = Launched(folder, **variables)
    try:
        if ready:
            run.wait_until_ready()
        yield run
    finally:
        run.close()


def prepare_folder(folder: Path) -> Path:
    """Make `folder` one to start in: with the configuration, and nothing that an earlier run left."""
    shutil.copytree(ROOT / "config", folder / "config")
    return folder


def inherited_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those of the variables that what a test starts may have."""
    return {name: value for name, value in environ.items() if INHERITED.fullmatch(name)}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def is_alive(pid: int) -> bool:
    """Whether the process runs. An orphan that has ended counts as gone, though nobody may have collected it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
