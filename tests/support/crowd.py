"""A crowd of keep-alive clients, in a process of its own so that its work is not the tested one's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.untraced import without_coverage

__all__ = ["Crowd"]


class Crowd:
    """A load client that has been started; `result` waits for its end."""

    def __init__(self, port: int, connections: int, seconds: float, path: str, headers: dict[str, str]) -> None:
        fields = [f"{name}: {value}" for name, value in headers.items()]
        arguments = [str(port), str(connections), str(seconds), path, *fields]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.load_client", *arguments],
            cwd=Path(__file__).parents[2],
            env=without_coverage(),
            stdout=subprocess.PIPE,
            text=True,
        )

    def result(self) -> dict[str, Any]:
        """What the clients saw."""
        output, _ = self._process.communicate(timeout=120)
        assert 0 == self._process.returncode
        result: dict[str, Any] = json.loads(output)
        print(result)
        return result
