"""What the image copies is enough to run the service: no engine is needed to see that nothing is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.launched import free_ports

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
CHECK = """
import http.client, os, time
for _ in range(200):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["PORT"]), timeout=5)
        connection.request("GET", "/readyz")
        print(connection.getresponse().status)
        break
    except OSError:
        time.sleep(0.05)
"""


def test_what_is_copied_migrates_and_serves(tmp_path: Path) -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+) (\S+)$", DOCKERFILE, re.MULTILINE)
    for source, target in copied:
        if target == ".":
            continue  # of the build stage
        place = ROOT / source
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / target)
    port, admin_port = free_ports(2)
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "PORT": str(port),
        "ADMIN_PORT": str(admin_port),
        "SEAWALL_ENVIRONMENT": "production",
        "TOKEN_SECRET": "x" * 48,
        "DRAIN_DELAY": "0",
    }
    (command,) = re.findall(r"^CMD (\[\"gunicorn.*\])$", DOCKERFILE, re.MULTILINE)
    program, *arguments = yaml.safe_load(command)
    subprocess.run([sys.executable, "-m", "service", "migrate"], cwd=tmp_path, env=environment, check=True, timeout=60)
    server = subprocess.Popen([sys.executable, "-m", program, *arguments], cwd=tmp_path, env=environment)
    try:
        ready = subprocess.run(
            [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert "200\n" == ready.stdout
    finally:
        server.terminate()
        assert 0 == server.wait(30)


def test_compose_starts_what_the_service_needs_before_it() -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())
    service = compose["services"]["service"]
    assert {"migrate", "limits"} == set(service["depends_on"])
    assert "127.0.0.1:8001:8001" in service["ports"], "the admin listener is for this host only"
    assert ROOT == (ROOT / "docker" / service["build"]["context"]).resolve()
    assert (ROOT / service["build"]["dockerfile"]).is_file()
