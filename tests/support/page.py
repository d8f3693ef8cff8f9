"""Runs the code of a document as a reader would: `python -m tests.support.page FILE SECTION`.

The blocks in Python of one section (up to the next heading of the same depth or above) run one after the other in one
module; in a `pycon` block each answer must be what is printed there. What the document names as its Redis server is
replaced by the one at REDIS_ADDRESS, if that is set.
"""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType

__all__ = [
    "Block",
    "anchors_of",
    "blocks_of",
    "check_links",
    "check_section",
    "compare",
    "rows_of",
    "sections_of",
    "served",
]

ROOT = Path(__file__).parents[2]
DOCUMENTED_REDIS = "127.0.0.1:6379"
_PARTS = re.compile(r"^#{2,6} (?P<title>[^\n]+)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code: its language, its text, the heading above it, and the line of the document it begins on."""

    language: str
    text: str
    section: str
    line: int


def blocks_of(document: Path) -> list[Block]:
    """Every block of code, in order."""
    content = document.read_text(encoding="utf-8")
    section, found = "", []
    for match in _PARTS.finditer(content):
        if match["title"]:
            section = match["title"]
        else:
            line = content.count("\n", 0, match.start()) + 2
            found.append(Block(match["language"], match["text"], section, line))
    return found


def sections_of(document: Path) -> list[str]:
    """The headings that have code in Python below them, in order."""
    return list(dict.fromkeys(block.section for block in blocks_of(document) if block.language in ("python", "pycon")))


def rows_of(document: Path, table: str) -> list[list[str]]:
    """The cells of the table below this comment, row by row, without its heading."""
    between = document.read_text(encoding="utf-8").split(f"<!-- {table} -->\n")[1].split("<!-- end -->")[0]
    lines = between.strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def anchors_of(document: Path) -> set[str]:
    """What the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links(document: Path) -> None:
    """Every link to a file or a heading leads there."""
    text = _CODE.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = document.parent / name if name else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


def check_section(document: Path, section: str, variables: Mapping[str, str] = MappingProxyType({})) -> None:
    """The code of a section runs in a process of its own, without a warning, and answers as printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.page", str(document), section],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr), done.stdout


@contextlib.contextmanager
def served(folder: Path, code: str, variables: Mapping[str, str] = MappingProxyType({})) -> Iterator[int]:
    """Serves an application as `flask run` does. The port."""
    (folder / "app.py").write_text(code, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "flask", "run", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


def run(document: Path, section: str) -> int:
    """Run one section; the number of answers that differ from what is printed."""
    module = ModuleType("page")
    sys.modules["page"] = module
    failures = 0
    for block in blocks_of(document):
        if block.section != section:
            continue
        text = block.text.replace(DOCUMENTED_REDIS, os.environ.get("REDIS_ADDRESS", DOCUMENTED_REDIS))
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + text, str(document), "exec"), module.__dict__)
        elif block.language == "pycon":
            failures += compare(text, module, document, block.line)
    return failures


def compare(text: str, module: ModuleType, document: Path, line: int) -> int:
    """Run what was typed, in a module; the number of answers that differ from what is printed."""
    test = doctest.DocTestParser().get_doctest(text, {}, document.name, str(document), line - 1)
    test.globs = module.__dict__
    return doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False).failed


if __name__ == "__main__":
    sys.exit(min(1, run(Path(sys.argv[1]), sys.argv[2])))
