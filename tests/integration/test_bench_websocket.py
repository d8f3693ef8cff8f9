"""The benchmark of WebSockets runs, all of it: a short round of every part."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.websocket.command import PARTS

ROOT = Path(__file__).parents[2]


@pytest.mark.prove
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("cc") is None, reason="the clients are in C")
@pytest.mark.parametrize("part", PARTS)
def test_every_contender_of_a_part_shows_a_figure(part: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "websocket", part, "--quick", "--output", str(seen)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    document = json.loads(seen.read_text())
    assert document["sections"]
    for section in document["sections"]:
        for row in section["rows"]:
            lacks = "gorilla" in document["missing"] and "Gin" in row["contender"]
            assert lacks or row["medians"], f"{section['title']}: {row['contender']}: {row['failure']}"
