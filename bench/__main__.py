"""`python -m bench`: the library's tables. `python -m bench limiter`, `breaker` or `load`: those of one subject.

`python -m bench worker`: the parking worker beside its peers; it has options of its own.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from importlib.metadata import version

SUBJECTS = ("limiter", "breaker")
LOAD = "load"  # takes minutes and both processors, so only when asked for
WORKER = "worker"  # likewise, for an hour
PEERS = ("limits", "pybreaker", "gevent", "redis")


def main() -> None:
    """Run what is asked for, the parts with greenlets in a process that gevent patched before anything was imported."""
    if sys.argv[1:2] == [WORKER]:
        import bench.worker.command

        sys.exit(bench.worker.command.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--greenlets", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    subjects = arguments.subjects or list(SUBJECTS)
    unknown = set(subjects) - {*SUBJECTS, LOAD}
    if unknown:
        parser.error(
            f"no such subject: {', '.join(sorted(unknown))}; choose from {', '.join((*SUBJECTS, LOAD, WORKER))}"
        )
    if LOAD in subjects:
        import bench.load

        bench.load.run()
        return
    if arguments.greenlets:
        _run(subjects, greenlets=True)
        return
    peers = ", ".join(f"{name} {version(name)}" for name in PEERS)
    print(f"Python {platform.python_version()}, {peers}. The machine is shared: compare within a table only.")
    _run(subjects, greenlets=False)
    sys.stdout.flush()
    patched = (
        "from gevent import monkey; monkey.patch_all(); import runpy; runpy.run_module('bench', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", patched, *subjects, "--greenlets"], check=True)


def _run(subjects: list[str], *, greenlets: bool) -> None:
    import bench.breaker
    import bench.limiter

    modules = {"limiter": bench.limiter, "breaker": bench.breaker}
    for subject in subjects:
        modules[subject].run(greenlets=greenlets)


if __name__ == "__main__":
    main()
