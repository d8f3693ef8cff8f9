"""Records in shared memory with real processes: exact together, told at once, whole after a kill at any instant.

Processes are forked by scripts in a process of their own, never by pytest's. In a script, `start(work)` forks a child that
does `work()` and leaves; `storage()` opens a storage on the one file of the test; what is printed is what was seen. The rest
of what scripts begin with is in `tests.support.forked`.
"""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import forked

PRELUDE = (
    forked.PRELUDE
    + """
from resilience.storage import state_shm, state_table
from resilience.storage.state_shm import SharedMemoryStateStorage

def storage(records=64, clock=SYSTEM_CLOCK):
    return SharedMemoryStateStorage(f"shm://{PATH}?records={records}", clock=clock, _kind=KIND)

def stripes_of(records):
    return records.current()._stripes

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
"""
)
run = partial(forked.run, PRELUDE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


both_kinds = pytest.mark.parametrize("kind", ["mutexes", pytest.param("records", marks=pytest.mark.prove)])


@pytest.mark.parametrize(
    ("opened", "kind"),
    [
        ("before the fork", "mutexes"),
        ("by each", "records"),
        pytest.param("before the fork", "records", marks=pytest.mark.prove),
        pytest.param("by each", "mutexes", marks=pytest.mark.prove),
    ],
)
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


@pytest.mark.prove  # files of limits, which are made by the same code, show it every time
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


@pytest.mark.parametrize(
    ("patched", "kind"),
    [
        pytest.param(False, "records", id="threads-records"),
        pytest.param(True, "mutexes", id="greenlets-mutexes"),
        pytest.param(False, "mutexes", id="threads-mutexes", marks=pytest.mark.prove),
        pytest.param(True, "records", id="greenlets-records", marks=pytest.mark.prove),
    ],
)
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
WATCHED = "0"
clock = FakeClock()
STORAGE = storage(16, clock)

def begin():
    global following, heard, text
    following = STORAGE.follow(WATCHED)
    heard, text = number(following), STORAGE.read(WATCHED).text

def end():
    assert heard != number(following) or text == following.read().text, "a change that nobody hears of"
"""


def killed_at_every_step(path: Path, script: str) -> list[list[Any]]:
    """What `look(records)` saw after `work(records)` ended at any of its steps, each answer once. All changes are heard of."""
    return forked.killed_at_every_step(PRELUDE, KILLED_AT_EVERY_STEP + textwrap.dedent(script), path)


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


@pytest.mark.prove
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


@pytest.mark.prove
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

holder = stopped_with(records, lock)
slept, logged = noted_sleeps(), noted_log()

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
    print(json.dumps([sorted(set(said)), waited, reads, number(following) - heard, logged]))
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


@pytest.mark.parametrize(
    "patched", [pytest.param(False, id="threads", marks=pytest.mark.prove), pytest.param(True, id="greenlets")]
)
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
    said, logged = [], noted_log()
    records = storage(512)
    following = records.follow("a")
    for ask in (following.read, *[lambda: records.update("a", to(b"1"), keep=60)] * 2):
        try:
            ask()
        except StorageUnavailable as error:
            said.append(str(error))
    print(json.dumps([said, logged, os.listdir(os.path.dirname(PATH))]))
    """
    (first, *others), (line,), left = run(script, path)
    assert first.endswith("the record 'a' has no place yet")
    assert [f"{path}: it cannot be opened (File too large)"] * 2 == others
    assert line.endswith(f"each process keeps its circuits for itself: {others[0]}"), "told once"
    assert [] == left
