"""Records in shared memory with real processes: exact together, told at once, whole after a kill at any instant.

Processes are forked by scripts in a process of their own, never by pytest's. In a script, `start(work)` forks a child that
does `work()` and leaves; `storage()` opens a storage on the one file of the test; what is printed is what was seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support.untraced import without_coverage

ROOT = Path(__file__).parents[2]

PRELUDE = """
import errno, json, os, random, signal, sys, time
from resilience.clock import SYSTEM_CLOCK
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.storage import mutex, state_shm, state_table
from resilience.storage.mutex import RecordLocks, RobustMutexes
from resilience.storage.state_shm import SharedMemoryStateStorage
from resilience.testing import FakeClock

signal.alarm(100)
PATH, KIND = sys.argv[1], {"mutexes": RobustMutexes, "records": RecordLocks}[sys.argv[2]]
life, lifeline = os.pipe()  # children that wait read it: it ends with the script, and so do they

def storage(records=64, clock=SYSTEM_CLOCK):
    return SharedMemoryStateStorage(f"shm://{PATH}?records={records}", clock=clock, _kind=KIND)

def start(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)
        os.close(lifeline)
        try:
            work()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return pid

def join(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

def count(text, now):
    number = int(text or b"0") + 1
    return b"%d" % number, number

def to(text):
    return lambda _text, _now: (text, None)

def number(following):
    return following.cell[following.place]

def lock_of(records, name):
    opened = records.current()
    return opened._lock_of(opened.records.find(opened.key("seawall", name)))

def take_and_leave_all_locks(records):
    # What the tries answered. Each lock is free afterwards.
    stripes = records.current()._stripes
    statuses = [stripes.try_lock(handle) for handle in stripes.handles]
    for handle, status in zip(stripes.handles, statuses, strict=True):
        if status:
            stripes.insist(handle, status)
        stripes.unlock(handle)
    return statuses

def all_locks_are_free(records):
    return set(take_and_leave_all_locks(records)) == {0}
"""


def run(script: str, path: Path, kind: str = "mutexes", *, patched: bool = False, timeout: float = 100) -> Any:
    """What the script says it saw, as JSON."""
    first = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", first + PRELUDE + textwrap.dedent(script), str(path), kind],
        cwd=ROOT,
        env=without_coverage(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (0, "") == (finished.returncode, finished.stderr), finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


both_kinds = pytest.mark.parametrize("kind", ["mutexes", "records"])


@both_kinds
@pytest.mark.parametrize("opened", ["before the fork", "by each"])
def test_no_change_of_four_processes_is_lost(path: Path, kind: str, opened: str) -> None:
    script = f"""
    records = storage()
    if {opened == "before the fork"}:
        records.update("a", to(b"0"), keep=60)
    ready, go = os.pipe()
    results, say = os.pipe()
    def hammer():
        os.close(go)
        os.read(ready, 1)  # all begin together: it ends
        for turn in range(250):
            records.update("a", count, keep=60)
            records.update(f"of turn {{turn % 10}}", count, keep=60)
            left = records.exchange("members", f"{{os.getpid()}}", b"%d" % turn, keep=60)
            assert b"%d" % turn == left[f"{{os.getpid()}}"]
    pids = [start(hammer) for _ in range(4)]
    os.close(go)
    assert [0] * 4 == join(*pids)
    left = records.exchange("members", "looks", b"", keep=60)
    seen = [int(records.read(name).text) for name in ("a", "of turn 0", "of turn 9")]
    print(json.dumps([seen, len(left), sorted({{text.decode() for text in left.values()}}), all_locks_are_free(records)]))
    """
    assert [[1_000, 100, 100], 5, ["", "249"], True] == run(script, path, kind)


def test_no_change_of_greenlets_of_several_processes_is_lost(path: Path) -> None:
    script = """
    import gevent
    def hammer():
        records = storage()
        following = records.follow("a")
        def one():
            for _ in range(5):
                before = number(following)
                records.update("a", count, keep=60)
                assert number(following) > before
                gevent.sleep(0)
        gevent.joinall([gevent.spawn(one) for _ in range(100)], raise_error=True)
    assert [0, 0] == join(start(hammer), start(hammer))
    print(json.dumps(int(storage().read("a").text)))
    """
    assert 1_000 == run(script, path, patched=True)


def test_processes_that_make_the_file_at_the_same_time_share_one(path: Path) -> None:
    script = """
    ready, go = os.pipe()
    def first():
        os.close(go)
        os.read(ready, 1)
        storage(512).update("a", count, keep=60)
    pids = [start(first) for _ in range(8)]
    os.close(go)
    assert [0] * 8 == join(*pids)
    print(json.dumps([int(storage(512).read("a").text), os.listdir(os.path.dirname(PATH))]))
    """
    assert [8, ["state"]] == run(script, path)


@both_kinds
@pytest.mark.parametrize("patched", [False, True], ids=["threads", "greenlets"])
def test_news_are_in_every_process_at_once_also_in_one_that_was_forked_since(
    path: Path, kind: str, patched: bool
) -> None:
    """The number is in the memory before the change returns: nobody needs to be woken."""
    script = """
    parent = storage()
    following = parent.follow("a")
    cell, place = following.cell, following.place
    ask, answer = os.pipe(), os.pipe()
    def child():
        mine = storage().follow("a")
        heard = cell[place], number(mine)
        os.write(answer[1], b"r")
        while os.read(ask[0], 1) == b"?":
            heard = heard[0] + 1, heard[1] + 1
            assert heard == (cell[place], number(mine))
            texts = {following.read().text, mine.read().text}
            assert len(texts) == 1
            os.write(answer[1], texts.pop())
    pid = start(child)
    os.close(answer[1])  # should the child fail, nobody waits for it
    seen = [os.read(answer[0], 1).decode()]
    for turn in range(50):
        parent.update("a", to(b"%d" % (turn % 10)), keep=60)
        os.write(ask[1], b"?")
        seen.append(os.read(answer[0], 1).decode())
    os.write(ask[1], b"e")
    print(json.dumps([join(pid), "".join(seen)]))
    """
    assert [[0], "r" + "0123456789" * 5] == run(script, path, kind, patched=patched)


KILLED_AT_EVERY_STEP = """
FILES = {state_shm.__file__, state_table.__file__, mutex.__file__}
# What changes something, or is done between changes. What only reads and looks leaves nothing behind wherever it ends.
STEPS = {"_locked", "take_all", "_try_all", "_try", "write", "give", "_set_key", "leave_all", "unlock", "try_lock"}

def killed_at(step, work):
    left = step
    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name not in STEPS:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    def child():
        sys.settrace(trace)
        work()
    (code,) = join(start(child))
    assert code in (0, -signal.SIGKILL), code
    return code != 0

clock = FakeClock()
records = storage(16, clock)
seen, deaths, steps, ended = set(), 0, 0, False
while not ended:
    prepare(records)
    following = records.follow(WATCHED)
    heard, before = number(following), records.read(WATCHED).text
    ended = not killed_at(steps, lambda: work(records))
    assert heard != number(following) or before == following.read().text, "a change that nobody hears of"
    deaths += take_and_leave_all_locks(records).count(errno.EOWNERDEAD)
    seen.add(tuple(look(records)))
    after(records)
    steps += 1
print(json.dumps([sorted(seen), steps, deaths]))
"""


def killed_at_every_step(path: Path, script: str) -> list[list[Any]]:
    """Do `work(records)` in a child that is killed before its first bytecode, before its second, and so on, until it ends.

    Returns what `look(records)` saw afterwards, each answer once.
    """
    setup = "WATCHED = '0'\ndef after(records):\n    pass\n" + textwrap.dedent(script)
    seen, steps, deaths = run(setup + KILLED_AT_EVERY_STEP, path)
    assert steps > 100
    assert deaths > 50, "in so many cases it died with a lock"
    answers: list[list[Any]] = seen
    return answers


def test_a_record_is_as_before_or_as_after_when_its_writer_is_killed_at_any_step(path: Path) -> None:
    script = """
    def prepare(records):
        records.update("0", to(b"before"), keep=60)
        records.update("another", to(b"another"), keep=60)
    def work(records):
        records.update("0", to(b"after" * 100), keep=60)
    def look(records):
        return [records.read(name).text[:7].decode() for name in ("0", "another")]
    """
    assert [["afteraf", "another"], ["before", "another"]] == killed_at_every_step(path, script)


def test_a_new_record_is_there_or_not_and_displaces_only_one_whose_time_is_over(path: Path) -> None:
    """Sixteen records fill the file; the time of `0` is over, and whoever dies on the way has taken no other one's place."""
    script = """
    WATCHED = "1"
    def prepare(records):
        for place in range(16):
            records.update(f"{place}", to(b"kept"), keep=60 if place else 1)
        clock.advance(2)
    def work(records):
        records.update("new", to(b"new"), keep=1)
    def look(records):
        kept = [records.read(f"{place}").text for place in range(1, 16)]
        assert [b"kept"] * 15 == kept
        return [str(records.read("0").text), str(records.read("new").text)]
    def after(records):
        clock.advance(2)
    """
    assert [["None", "None"], ["None", "b'new'"]] == killed_at_every_step(path, script)


def test_what_a_member_leaves_is_there_or_not_when_it_is_killed_at_any_step(path: Path) -> None:
    script = """
    def prepare(records):
        records.exchange("g", "stays", b"1", keep=60)
        records.exchange("g", "dies", b"2", keep=60)
    def work(records):
        records.exchange("g", "dies", b"3" * 100, keep=60)
        records.exchange("g", "came", b"4", keep=1)
    def look(records):
        left = records.exchange("g", "looks", b"", keep=60)
        assert b"1" == left["stays"] and b"" == left["looks"]
        return [left["dies"][:1].decode(), left.get("came", b"").decode()]
    def after(records):
        clock.advance(2)
    """
    assert [["2", ""], ["3", ""], ["3", "4"]] == killed_at_every_step(path, script)


@both_kinds
def test_processes_killed_at_random_instants_wedge_nothing_and_tear_nothing(path: Path, kind: str) -> None:
    script = """
    records = storage(16)
    results, say = os.pipe()
    def whole(text):
        return text is None or len(set(text)) <= 1
    def hammer():
        os.write(say, b"1")
        letter = 0
        while True:
            letter = (letter + 1) % 26
            text = bytes([97 + letter]) * random.randrange(1, 3_900)
            records.update("hot", to(text), keep=60)
            records.update("counted", count, keep=60)
            records.update(f"{random.random()}", to(b"flood"), keep=0.000_1)
            left = records.exchange("g", f"{letter}", text[:400], keep=60)
            assert all(map(whole, left.values()))
            assert whole(records.read("hot").text)
    rounds, deaths, counted, slowest = 0, 0, 0, 0.0
    while rounds < 50 or (rounds < 500 and not deaths and KIND is RobustMutexes):
        rounds += 1
        pids = [start(hammer), start(hammer)]
        for _ in pids:
            os.read(results, 1)
        time.sleep(random.random() * 0.01)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert [-signal.SIGKILL] * 2 == join(*pids)
        deaths += take_and_leave_all_locks(records).count(errno.EOWNERDEAD)
        before = time.monotonic()
        assert whole(records.read("hot").text)
        now = int(records.read("counted").text or b"0")
        assert now >= counted
        counted = now
        records.update("counted", count, keep=60)
        slowest = max(slowest, time.monotonic() - before)
    keys = [records.current().records.key(place) for place in range(16)]
    print(json.dumps([len({*keys}) == 16, deaths, counted > rounds, slowest < 1]))
    """
    distinct, deaths, counted, quick = run(script, path, kind)
    assert (True, True, True) == (distinct, counted, quick)
    assert kind == "records" or deaths > 0, "not one died with a lock"


STOPPED = """
records = storage()
for name in ("s", *map(str, range(20))):
    records.update(name, to(b"before"), keep=60)
lock = lock_of(records, "s")
other = next(str(name) for name in range(20) if lock_of(records, str(name)) != lock)
following = records.follow("s")

def hold():
    stripes = records.current()._stripes
    assert 0 == stripes.try_lock(lock)
    os.kill(os.getpid(), signal.SIGSTOP)
    stripes.unlock(lock)

holder = start(hold)
while not mutex._is_stopped(holder):
    time.sleep(0.001)
slept, sleep = [], SYSTEM_CLOCK.sleep
def counting(seconds):
    slept.append(seconds)
    sleep(seconds)
SYSTEM_CLOCK.sleep = counting
import logging
logged = logging.Handler()
logged.lines = []
logged.emit = lambda record: logged.lines.append(record.getMessage())
logging.getLogger("resilience").addHandler(logged)

def refusal(ask):
    try:
        ask()
    except StorageBusy as error:
        return str(error).partition(": ")[2]
"""


@both_kinds
def test_a_stopped_holder_is_waited_for_no_longer_than_5_ms_and_hinders_nobody_else(path: Path, kind: str) -> None:
    script = """
    said = [refusal(lambda: records.update("s", to(b"after"), keep=60)) for _ in range(20)]
    waited = sum(slept)
    heard = number(following)
    records.update(other, to(b"after"), keep=60)
    reads = [text.decode() for text in (records.read("s").text, following.read().text, records.read(other).text)]
    os.kill(holder, signal.SIGCONT)
    assert [0] == join(holder)
    records.update("s", to(b"after"), keep=60)
    print(json.dumps([sorted(set(said)), waited, reads, number(following) - heard, logged.lines]))
    """
    said, waited, reads, changes, logged = run(STOPPED + textwrap.dedent(script), path, kind)
    assert [
        "another process holds the record's lock and does not go on, or a signal handler asks in the middle of a change"
    ] == said
    assert waited < 0.01, "slept for in all, by twenty who asked"
    assert (["before", "before", "after"], 1) == (reads, changes)
    (line,) = logged
    assert line.endswith("is left to each process alone until it continues or is killed")


def test_a_stopped_holder_that_is_killed_leaves_the_lock(path: Path) -> None:
    script = """
    assert refusal(lambda: records.update("s", to(b"after"), keep=60))
    os.kill(holder, signal.SIGKILL)
    join(holder)
    records.update("s", to(b"after"), keep=60)
    print(json.dumps([following.read().text.decode(), all_locks_are_free(records)]))
    """
    assert ["after", True] == run(STOPPED + textwrap.dedent(script), path)


@pytest.mark.parametrize("patched", [False, True], ids=["threads", "greenlets"])
def test_when_the_file_is_removed_processes_meet_again_within_seconds(path: Path, patched: bool) -> None:
    """By attendants that look once a second: nobody needs to change anything."""
    script = """
    records = storage()
    records.update("a", to(b"before"), keep=60)
    ready, said = os.pipe(), os.pipe()
    def child():
        mine = storage()
        following = mine.follow("a")
        heard, deadline = number(following), time.monotonic() + 30
        following.read()
        os.write(said[1], b"r")
        while time.monotonic() < deadline:
            if heard != number(following):
                heard = number(following)
                if following.read().text == b"after":
                    return
            time.sleep(0.01)
        os._exit(2)
    pids = [start(child), start(child)]
    for _ in pids:
        os.read(said[0], 1)
    os.unlink(PATH)
    records.update("a", to(b"after"), keep=60)
    print(json.dumps(join(*pids)))
    """
    assert [0, 0] == run(script, path, patched=patched)


def test_a_file_system_without_room_is_told_of_and_everything_goes_on_alone(path: Path) -> None:
    script = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    records = storage(512)
    following = records.follow("a")
    said = []
    for ask in (following.read, lambda: records.update("a", to(b"1"), keep=60)):
        try:
            ask()
        except StorageUnavailable as error:
            said.append(str(error))
    print(json.dumps([said, os.listdir(os.path.dirname(PATH))]))
    """
    (first, second), left = run(script, path)
    assert first.endswith("the record 'a' has no place yet")
    assert f"{path}: it cannot be opened (File too large)" == second
    assert [] == left
