"""One client process: `python -m longconn.load.process`, started by the conductor.

It reads what to do (a share of a plan) as one line of JSON on its standard input, and tells its tally as a line of JSON on its
standard output, ten times a second and once more at the end. It ends when its input does, when it is told to ("stop"), and in
any case when the time that the plan allows is over.
"""

from __future__ import annotations

import json
import os
import resource
import select
import sys
import time
from pathlib import Path

from longconn.capacity import raise_file_limit
from longconn.load.crowd import Crowd
from longconn.load.plan import Share
from longconn.load.tally import Tally

__all__ = ["TELL_EVERY", "main"]

TELL_EVERY = 0.1
"""Seconds between two tallies."""

GRACE = 60.0
"""Seconds after the end of the plan after which a process that nobody stopped ends by itself."""


def main() -> None:
    """Do as told, until told to stop."""
    raise_file_limit()
    share = Share.from_json(json.loads(sys.stdin.buffer.readline()))
    crowd = Crowd(share)
    try:
        _hold(crowd, time.monotonic() + share.plan.opening_seconds + share.plan.seconds + GRACE)
        held = crowd.tally.open
        crowd.leave()
        crowd.tally.open = held  # what counts is how many there were
        _tell(crowd.tally, last=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody listens any longer, which is no error
    finally:
        crowd.close()


def _hold(crowd: Crowd, deadline: float) -> None:
    told_at, used = time.monotonic(), _processor()
    while told_at < deadline:
        crowd.turn()
        now = time.monotonic()
        if now - told_at < TELL_EVERY:
            continue
        if select.select([0], [], [], 0)[0]:
            return  # told to stop, or whoever started this has ended
        crowd.tally.processor = _processor()
        crowd.tally.busiest = max(crowd.tally.busiest, (crowd.tally.processor - used) / (now - told_at))
        told_at, used = now, crowd.tally.processor
        _tell(crowd.tally)


def _tell(tally: Tally, *, last: bool = False) -> None:
    tally.memory = _memory()
    sys.stdout.write(json.dumps({"tally": tally.as_json(), "last": last}) + "\n")
    sys.stdout.flush()


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _memory() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
