"""The README's tour, run as it is printed, in a shell, against what `make run` starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

from tests.support.launched import launched, prepare_folder

ROOT = Path(__file__).parents[2]


def tour() -> list[str]:
    """The commands of the tour, block by block."""
    return re.findall(r"<!-- tour -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_tour_shows_what_it_says(tmp_path: Path) -> None:
    with launched(prepare_folder(tmp_path), {"WEB_CONCURRENCY": "2"}) as run:
        environment = {
            **os.environ,
            "PORT": str(run.port),
            "ADMIN_PORT": str(run.admin_port),
            "DEMO_PORT": str(run.demo_port),
            "PASSWORD": run.value("password"),
            "ADMIN_TOKEN": run.value("admin token"),
        }
        script = "\necho =====\n".join(["set -euo pipefail", *tour()])
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
    signed_in, broken, healed, moved = done.stdout.split("=====\n")[1:]
    assert "HTTP/1.1 200 OK" in signed_in
    assert {"RateLimit", "RateLimit-Policy", "X-Request-ID", "X-Trace-Id"} <= set(
        re.findall(r"^([\w-]+):", signed_in, re.MULTILINE)
    )
    statuses = broken.splitlines()[1].split()
    failed = Counter(statuses)["500"]
    assert 5 <= failed <= 9, "five failures in a row in one of two workers"
    assert ["500"] * failed + ["503"] * (40 - failed) == statuses, "and none after that in either"
    assert "'states': {'open': 2}, 'cause': 'too many failed or slow calls'" in broken
    assert ["200"] * 40 == healed.splitlines()[1].split()
    assert "'states': {'closed': 2}" in healed
    *answer, refused, answered = moved.splitlines()
    order = json.loads("\n".join(answer))
    assert ("forced-open", {"forced-open": 2}) == (order["circuit"]["state"], order["circuit"]["states"])
    assert refused.startswith("503 {'name': 'demo', 'states': {'forced-open': 2}, 'cause': 'forced open'")
    assert "'reason': 'the backend is being replaced', 'author': 'token (127.0.0.1)'" in refused
    assert answered.startswith("200 {'name': 'demo', 'states': {'closed': 2}")
