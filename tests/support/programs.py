"""Functions of `tests.support` that are programs: each is run in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["run"]


def run(program: Callable[..., None], *arguments: object, patched: bool) -> str:
    """What `program` prints in a process of its own, `patched` by gevent or not. Fails when it also complains."""
    source = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    source += f"import sys; from {program.__module__} import {program.__name__} as program; program(*sys.argv[1:])"
    command = [sys.executable, "-W", "error", "-c", source, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert (0, "") == (done.returncode, done.stderr), done.stdout + done.stderr
    return done.stdout.strip()
