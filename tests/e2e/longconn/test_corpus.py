"""gunicorn's own corpus of valid and invalid requests, over live sockets.

The corpus is in gunicorn's source distribution, which is looked for below var/ and downloaded when it is not there. Its
own loader decodes it, and each case runs under the settings that its sidecar asks for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from tests.support.longconn_client import Broken, Conversation, Reply
from tests.support.longconn_server import GunicornServer, gunicorn_server

VERSION = "27.0.1"
FOLDER = Path(__file__).resolve().parents[3] / "var" / "corpus"
MIRROR = "tests.support.longconn_mirror:application"
DEADLINES = {
    "LONGCONN_HEAD_TIMEOUT": "1.5",
    "LONGCONN_BODY_TIMEOUT": "1.5",
    "LONGCONN_WRITE_TIMEOUT": "1.5",
    "LONGCONN_IDLE_TIMEOUT": "1.5",
}
HANG = 8.0
"""Seconds after which a connection hangs: a whole head, then a body, then idle, each up to its deadline, and room."""

MODES = ("half-closed", "left open")
INCOMPLETE = "valid/099"
"""Announces more body than it has: an answer is due when its client has left, and 408 when its client is late."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A request of the corpus. `expected` has one item per request it holds, and none when it is invalid.

    `settings` is the text of a configuration file.
    """

    name: str
    data: bytes
    settings: str
    expected: tuple[Mapping[str, Any], ...]


Verdicts = dict[tuple[str, str], list[Reply] | str]
"""The answers by case and mode, or what was wrong with them."""


@pytest.fixture(scope="module")
def corpus() -> list[Case]:
    folder = FOLDER / f"gunicorn-{VERSION}" / "tests"
    if not (folder / "requests").is_dir():
        _download()
    loader = importlib.util.spec_from_file_location("gunicorn_corpus", folder / "treq.py")
    assert loader is not None
    assert loader.loader is not None
    treq = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(treq)
    return [_case(treq, file) for file in sorted((folder / "requests").glob("*/*.http"))]


@pytest.fixture(scope="module", params=["auto", pytest.param("python", marks=pytest.mark.prove)])
def verdicts(corpus: list[Case], request: pytest.FixtureRequest) -> Verdicts:
    """Every case in every mode, each on a connection of its own and all at once."""
    groups: defaultdict[str, list[Case]] = defaultdict(list)
    for case in corpus:
        groups[case.settings].append(case)
    results: Verdicts = {}
    with ThreadPoolExecutor(4) as servers:
        for found in servers.map(lambda group: _run(*group, parser=request.param), groups.items()):
            results.update(found)
    return results


def test_the_corpus_is_all_there(corpus: list[Case]) -> None:
    assert (62, 81) == (sum(bool(case.expected) for case in corpus), sum(not case.expected for case in corpus))
    assert len({case.settings for case in corpus}) > 10


@pytest.mark.parametrize("mode", MODES)
def test_every_invalid_request_is_refused(corpus: list[Case], verdicts: Verdicts, mode: str) -> None:
    """The last answer is an error, or the connection ends without any."""
    answers = {case.name: verdicts[case.name, mode] for case in corpus if not case.expected}
    assert {} == {
        name: _shown(found)
        for name, found in answers.items()
        if isinstance(found, str) or (found and found[-1].status < 400)
    }


@pytest.mark.parametrize("mode", MODES)
def test_every_valid_request_is_answered(corpus: list[Case], verdicts: Verdicts, mode: str) -> None:
    wanted = {case.name: [200] * len(case.expected) for case in corpus if case.expected}
    if mode == "left open":
        wanted[INCOMPLETE] = [408]
    found = {name: _shown(verdicts[name, mode]) for name in wanted}
    assert {} == {name: found[name] for name in wanted if wanted[name] != found[name]}


@pytest.mark.parametrize("mode", MODES)
def test_the_application_gets_what_was_sent(corpus: list[Case], verdicts: Verdicts, mode: str) -> None:
    wrong = {}
    for case in corpus:
        found = verdicts[case.name, mode]
        if case.expected and not isinstance(found, str) and all(reply.status == 200 for reply in found):
            seen = [_seen(reply) for reply in found]
            wanted = [(each["method"], each["uri"]["raw"], len(each["body"])) for each in case.expected]
            if wanted != seen:
                wrong[case.name] = (wanted, seen)
    assert {} == wrong


def test_half_closed_and_left_open_make_no_difference(corpus: list[Case], verdicts: Verdicts) -> None:
    """The statuses are the same, but for a request that is not complete: its client either left or is late."""
    statuses = {key: _statuses(found) for key, found in verdicts.items()}
    pairs = {case.name: tuple(statuses[case.name, mode] for mode in MODES) for case in corpus}
    assert {} == {name: (left, kept) for name, (left, kept) in pairs.items() if left != kept and kept[-1:] != [408]}


def _download() -> None:
    """Get the source distribution. Skips the tests where there is no package index."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    options = ("--no-deps", "--no-binary", ":all:", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(FOLDER), f"gunicorn=={VERSION}"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    archive = FOLDER / f"gunicorn-{VERSION}.tar.gz"
    if not archive.exists():
        said = [line for line in outcome.stderr.splitlines() if "ERROR" in line] or ["pip says nothing"]
        pytest.skip(f"no source distribution of gunicorn {VERSION} below {FOLDER}, and none to download: {said[-1]}")
    with tempfile.TemporaryDirectory(dir=FOLDER) as unpacked, tarfile.open(archive) as contents:
        contents.extractall(unpacked, filter="data")
        (Path(unpacked) / f"gunicorn-{VERSION}").rename(FOLDER / f"gunicorn-{VERSION}")


def _case(treq: Any, file: Path) -> Case:
    sidecar = treq.load_py(str(file.with_suffix(".py")))
    valid = file.parent.name == "valid"
    wanted = sidecar["request"]
    expected = tuple(wanted if isinstance(wanted, list) else [wanted]) if valid else ()
    data = treq.request(str(file), []).data if valid else treq.badrequest(str(file)).data
    return Case(f"{file.parent.name}/{file.stem}", data, _settings(sidecar["cfg"]), expected)


def _settings(configuration: Any) -> str:
    """What a sidecar sets. The parser is left to the server: the loader always asks for the Python one."""
    usual = Config().settings
    values = {name: setting.get() for name, setting in configuration.settings.items() if name != "http_parser"}
    changed = {name: value for name, value in sorted(values.items()) if value != usual[name].get()}
    texts = {name: ",".join(value) if isinstance(value, list) else value for name, value in changed.items()}
    return "".join(f"{name} = {value!r}\n" for name, value in texts.items())


def _run(settings: str, cases: list[Case], *, parser: str) -> Verdicts:
    config = f"{settings}http_parser = {parser!r}\n"
    with gunicorn_server(app=MIRROR, environment=DEADLINES, config=config) as server, ThreadPoolExecutor(32) as clients:
        keys = [(case, mode) for case in cases for mode in MODES]
        found = clients.map(lambda key: _ask(server, *key), keys)
        return {(case.name, mode): verdict for (case, mode), verdict in zip(keys, found, strict=True)}


def _ask(server: GunicornServer, case: Case, mode: str) -> list[Reply] | str:
    """All answers up to the end of the connection, which comes at the idle deadline at the latest."""
    with Conversation(server.connect()) as client:
        client.send(case.data, *(each["method"] for each in case.expected))
        if mode == "half-closed":
            with contextlib.suppress(OSError):  # the server was faster
                client.socket.shutdown(socket.SHUT_WR)
        try:
            return client.until_closed(within=HANG)
        except Broken as error:
            return str(error)


def _seen(reply: Reply) -> tuple[str, str, int]:
    said = json.loads(reply.body.partition(b"\n")[0])
    return said["method"], said["uri"], said["length"]


def _statuses(found: Iterable[Reply] | str) -> list[int]:
    return [] if isinstance(found, str) else [reply.status for reply in found]


def _shown(found: list[Reply] | str) -> object:
    return found if isinstance(found, str) else _statuses(found)
