"""What the image copies is enough to run the service: no engine is needed to see that nothing is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launched import free_ports

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
CHECK = """
import http.client, os, time
for _ in range(200):
    try:
        connection = http.client.HTTPConnection(os.environ["HOST"], int(os.environ["PORT"]), timeout=5)
        connection.request("GET", "/readyz")
        print(connection.getresponse().status)
        break
    except OSError:
        time.sleep(0.05)
"""


@pytest.mark.parametrize(
    "host", ["0.0.0.0", *(pytest.param(host, marks=pytest.mark.prove) for host in ("127.0.0.1", "::1"))]
)
def test_what_is_copied_migrates_and_serves_and_is_found_healthy(tmp_path: Path, host: str) -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+) (\S+)$", DOCKERFILE, re.MULTILINE)
    for source, target in copied:
        if target == ".":
            continue  # of the build stage
        place = ROOT / source
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / target)
    port, admin_port = free_ports(2)
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "HOST": host,
        "PORT": str(port),
        "ADMIN_PORT": str(admin_port),
        "SEAWALL_ENVIRONMENT": "production",
        "TOKEN_SECRET": "x" * 48,
        "DRAIN_DELAY": "0",
    }
    (command,) = re.findall(r"^CMD (\[\"gunicorn.*\])$", DOCKERFILE, re.MULTILINE)
    (health_command,) = re.findall(r"^HEALTHCHECK .* CMD \\\n *(\[.*\])$", DOCKERFILE, re.MULTILINE)
    _, *health_check = json.loads(health_command)
    program, *arguments = yaml.safe_load(command)
    subprocess.run([sys.executable, "-m", "service", "migrate"], cwd=tmp_path, env=environment, check=True, timeout=60)
    server = subprocess.Popen(
        [sys.executable, "-m", program, *arguments], cwd=tmp_path, env=environment, start_new_session=True
    )
    try:
        ready = subprocess.run(
            [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert "200\n" == ready.stdout
        assert 0 == subprocess.run([sys.executable, *health_check], env=environment, timeout=10, check=False).returncode
        server.terminate()
        assert 0 == server.wait(30)
    finally:
        end(server)
    assert 1 == subprocess.run([sys.executable, *health_check], env=environment, timeout=10, check=False).returncode


def end(server: subprocess.Popen[bytes]) -> None:
    """Leave nothing running, also when it does not end as it should: the whole group, workers too."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def test_compose_starts_what_the_service_needs_before_it() -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())
    service = compose["services"]["service"]
    assert {
        "migrate": {"condition": "service_completed_successfully"},
        "limits": {"condition": "service_healthy"},
    } == service["depends_on"]
    assert "healthcheck" in compose["services"]["limits"]
    assert "127.0.0.1:8001:8001" in service["ports"], "the admin listener is for this host only"
    assert ROOT == (ROOT / "docker" / service["build"]["context"]).resolve()
    assert (ROOT / service["build"]["dockerfile"]).is_file()
