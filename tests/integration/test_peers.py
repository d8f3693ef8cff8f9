"""Workers ask each other over sockets that only their owner can reach."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilience.adapters.peers import Peers, Worker
from resilience.host import host_name

SIBLING = """
import sys
from pathlib import Path
from resilience.adapters.peers import Peers

heard = []
def answer(message):
    if "say" in message:
        return message["say"]
    heard.append(message)
    return {"heard": heard}

peers = Peers(answer, directory=Path(sys.argv[1]))
peers.listen()
print("listening", flush=True)
sys.stdin.read()
peers.close()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "peers"


@pytest.fixture
def sibling(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SIBLING), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert "listening\n" == process.stdout.readline()
        yield process
        process.kill()


def worker(pid: int) -> Worker:
    return Worker(host_name(), pid)


def peers(folder: Path | None, **options: Any) -> Peers:
    return Peers(lambda message: {"own": dict(message)}, directory=folder, **options)


def test_a_worker_without_a_folder_is_alone() -> None:
    alone = peers(None)
    alone.listen()
    assert ({worker(os.getpid()): {"own": {"do": "x"}}}, (), "") == alone.ask({"do": "x"})
    alone.close()


def test_every_worker_answers_and_hears_the_question(folder: Path, sibling: subprocess.Popen[str]) -> None:
    asking = peers(folder)
    asking.listen()
    answers = asking.ask({"do": "x"})
    assert [worker(sibling.pid)] == asking.siblings()
    assert {asking.itself: {"own": {"do": "x"}}, worker(sibling.pid): {"heard": [{"do": "x"}]}} == answers.by_worker
    assert () == answers.unreached
    asking.close()


def test_a_worker_is_named_by_its_host_and_process() -> None:
    assert ("web-1:12", {"host": "web-1", "pid": 12}) == (str(Worker("web-1", 12)), Worker("web-1", 12).describe())
    assert Worker("web-1", os.getpid()) == peers(None, host="web-1").itself


def test_only_the_owner_can_reach_a_socket(folder: Path) -> None:
    listening = peers(folder)
    listening.listen()
    listening.listen()
    (path,) = folder.glob("*.sock")
    assert (0o700, 0o600) == (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(path.stat().st_mode))
    listening.close()
    listening.close()
    assert not path.exists()


def test_a_killed_worker_is_forgotten(folder: Path, sibling: subprocess.Popen[str]) -> None:
    path = folder / f"{sibling.pid}.peers.sock"
    sibling.kill()
    sibling.wait()
    assert path.exists()
    assert () == peers(folder).ask({}).unreached
    assert not path.exists()


def test_a_dead_worker_s_socket_goes_also_when_another_process_has_its_id_now(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    path = folder / f"{os.getppid()}.peers.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert () == peers(folder).ask({}).unreached
    assert not path.exists()


def test_what_was_closed_stays_closed(folder: Path) -> None:
    closed = peers(folder)
    closed.listen()
    closed.close()
    closed.listen()
    assert [] == list(folder.glob("*.sock"))


def test_a_worker_that_is_stopped_is_named_and_waited_for_no_longer_than_said(
    folder: Path, sibling: subprocess.Popen[str]
) -> None:
    sibling.send_signal(19)
    assert (worker(sibling.pid),) == peers(folder, timeout=0.1).ask({}).unreached
    sibling.send_signal(18)


def test_a_worker_that_is_stopped_is_waited_for_once_and_answers_again_when_it_goes_on(
    folder: Path, sibling: subprocess.Popen[str]
) -> None:
    asking = peers(folder, timeout=1.0)
    sibling.send_signal(19)
    try:
        taken = []
        for _ in range(3):
            began = time.monotonic()
            assert (worker(sibling.pid),) == asking.ask({}).unreached
            taken.append(time.monotonic() - began)
        assert taken[0] >= 0.9
        assert max(taken[1:]) < 0.7, "a busy machine takes its time too"
    finally:
        sibling.send_signal(18)
    deadline = time.monotonic() + 30
    while worker(sibling.pid) not in asking.ask({}).by_worker:
        assert time.monotonic() < deadline


def test_an_answer_that_cannot_be_used_is_named(folder: Path, sibling: subprocess.Popen[str]) -> None:
    asking = peers(folder, misfit=lambda message, answer: "x is missing" if "x" not in answer else "")
    for said in ({"y": 1}, [1]):
        answers = asking.ask({"say": said})
        assert ([asking.itself], (worker(sibling.pid),)) == ([*answers.by_worker], answers.unreached)
        assert f"{worker(sibling.pid)} gave no answer that can be used: " in answers.problem
    assert {"x": 1} == asking.ask({"say": {"x": 1}}).by_worker[worker(sibling.pid)]


def test_an_answer_of_several_megabytes_is_heard(folder: Path, sibling: subprocess.Popen[str]) -> None:
    said = {"x": "y" * 6_000_000}
    assert said == peers(folder).ask({"say": said}).by_worker[worker(sibling.pid)]


def test_a_line_that_breaks_off_hurts_nobody(folder: Path, sibling: subprocess.Popen[str]) -> None:
    for nonsense in (b"", b"{", b"nonsense\n", b"[1]\n", b"[" * 100_000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(folder / f"{sibling.pid}.peers.sock"))
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            assert b"" == connection.recv(1)
    assert worker(sibling.pid) in peers(folder).ask({"do": "y"}).by_worker
    sibling.kill()
    assert sibling.stderr is not None
    assert "Exception in thread" not in sibling.stderr.read()


def test_a_folder_that_others_can_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        peers(folder).listen()


def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long for a Unix socket"):
        peers(tmp_path / ("x" * 120)).listen()
