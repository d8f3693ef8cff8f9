"""What the kernel says of processes, asked about real ones."""

from __future__ import annotations

import os
import subprocess
import sys

from bench.worker.processes import children, descriptors, processor_time, resident, share, stop


def test_this_process_has_memory_files_and_processor_time() -> None:
    pid = os.getpid()
    assert resident(pid) > 2**20
    assert 0 < share([pid]) <= 2 * resident(pid)
    assert descriptors(pid) >= 3
    assert processor_time([pid]) > 0


def test_a_child_is_known_until_it_is_stopped() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        assert process.pid in children(os.getpid())
        stop(process)
        assert process.poll() is not None
    finally:
        assert process.stdin is not None
        process.stdin.close()
