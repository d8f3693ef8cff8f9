"""`python -m bench`: the library's tables. `python -m bench ratelimit`, `breaker` or `load`: those of one subject.

`python -m bench worker`: the parking worker beside its peers. `python -m bench websocket`: WebSockets, events and channels
beside theirs. `ratelimit`, `worker` and `websocket` have options of their own.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version

SUBJECTS = ("breaker", "ratelimit")
"""Those of the library: all of them when none is named."""
LOAD = "load"  # takes minutes and both processors, so only when asked for
WORKER = "worker"  # likewise, for an hour
WEBSOCKET = "websocket"  # likewise
GREENLETS = "--greenlets"
"""Given to the process in which gevent was patched before anything was imported."""
PEERS = ("pybreaker", "circuitbreaker", "gevent")


def main() -> int:
    """Run what is asked for."""
    subject, *arguments = sys.argv[1:] or ["all"]
    if subject in ("-h", "--help"):
        print(__doc__)
        return 0
    if subject == WORKER:
        import bench.worker.command

        return bench.worker.command.main(arguments)
    if subject == WEBSOCKET:
        import bench.websocket.command

        return bench.websocket.command.main(arguments)
    if subject == LOAD:
        import bench.load

        bench.load.run()
        return 0
    if subject not in (*SUBJECTS, "all"):
        print(
            f"no such subject: {subject}; choose from {', '.join((*SUBJECTS, LOAD, WORKER, WEBSOCKET))}",
            file=sys.stderr,
        )
        return 2
    status = 0
    if subject in ("breaker", "all"):
        _breaker(greenlets=GREENLETS in arguments)
    if subject in ("ratelimit", "all"):
        status = _ratelimit(arguments)
    return status


def _breaker(*, greenlets: bool) -> None:
    import bench.breaker

    if greenlets:
        bench.breaker.run(greenlets=True)
        return
    peers = ", ".join(f"{name} {version(name)}" for name in PEERS)
    print(f"Python {platform.python_version()}, {peers}. The machine is shared: compare within a table only.")
    bench.breaker.run(greenlets=False)
    sys.stdout.flush()
    patched = (
        "from gevent import monkey; monkey.patch_all(); import runpy; runpy.run_module('bench', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", patched, "breaker", GREENLETS], check=True)


def _ratelimit(arguments: Sequence[str]) -> int:
    import bench.ratelimit.command

    return bench.ratelimit.command.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
