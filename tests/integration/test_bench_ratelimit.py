"""The benchmark of the rate limiter runs, all of it: a short round of every part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.ratelimit.command import PARTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", PARTS)
def test_every_contender_of_a_part_shows_a_figure(part: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "ratelimit", part, "--quick", "--output", str(seen)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    sections = json.loads(seen.read_text())["sections"]
    assert sections
    for section in sections:
        for row in section["rows"]:
            assert not row["failure"]
            assert row["medians"], f"{section['title']}: {row['contender']}"
        assert [] == [target["what"] for target in section["targets"] if target["met"] is None]
