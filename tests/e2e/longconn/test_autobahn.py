"""The Autobahn cases, as kosoku runs them, against this worker: what the field judges WebSocket servers by."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.longconn_server import gunicorn_server

KOSOKU = Path(sys.executable).with_name("kosoku")
CORE = 247
"""Cases without those that measure limits (9) and compression (12, 13)."""
ALL = 517
WAIVED: frozenset[str] = frozenset()
"""Cases that fail on purpose, each with a reason beside it. There is none."""

pytestmark = pytest.mark.skipif(not KOSOKU.exists(), reason="kosoku is not installed")


def judged(app: str, reports: Path, *selection: str, within: float) -> dict[str, dict[str, Any]]:
    """What was found of every case, by its id, in at most so many seconds."""
    with gunicorn_server(app=f"tests.support.websocket_judged:{app}") as server:
        command = [str(KOSOKU), "-m", "fuzzingclient", "-p", "4", "-o", str(reports), *selection]
        subprocess.run([*command, f"127.0.0.1:{server.port}"], stdout=subprocess.DEVNULL, check=False, timeout=within)
        assert "Traceback" not in server.log()
    [found] = json.loads((reports / "index.json").read_text()).values()
    return dict(found)


def failed(found: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """The cases that did not pass, with what is said of the messages and of the close."""
    return {
        case: (verdict["behavior"], verdict["behaviorClose"])
        for case, verdict in found.items()
        if verdict["behavior"] not in ("OK", "NON-STRICT", "INFORMATIONAL")
        or verdict["behaviorClose"] not in ("OK", "INFORMATIONAL")
    }


def test_every_core_case_passes_and_strictly(tmp_path: Path) -> None:
    found = judged("application", tmp_path, "-x", "9.*", "-x", "12.*", "-x", "13.*", within=90)
    verdicts = Counter(verdict["behavior"] for verdict in found.values())
    print(dict(verdicts))
    assert CORE == len(found)
    assert {} == failed(found)
    assert verdicts["NON-STRICT"] <= 2


@pytest.mark.prove
@pytest.mark.timeout(1_200)
def test_every_case_passes_with_compression_and_generous_limits(tmp_path: Path) -> None:
    found = judged("generous", tmp_path, within=1_100)
    verdicts = Counter(verdict["behavior"] for verdict in found.values())
    print(dict(verdicts))
    assert ALL == len(found)
    assert {} == {case: verdict for case, verdict in failed(found).items() if case not in WAIVED}
    assert verdicts["NON-STRICT"] <= 2
