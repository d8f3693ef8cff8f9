"""Runs the code of a document as a reader would: `python -m tests.support.page FILE SECTION`.

The blocks in Python of one section (up to the next heading of the same depth or above) run one after the other in one
module; in a `pycon` block each answer must be what is printed there. What the document names as its Redis server is
replaced by the one at REDIS_ADDRESS, if that is set.
"""

from __future__ import annotations

import doctest
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

__all__ = ["Block", "blocks_of", "sections_of"]

DOCUMENTED_REDIS = "127.0.0.1:6379"
_PARTS = re.compile(r"^#{2,6} (?P<title>[^\n]+)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


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
            failures += _compare(text, module, document, block.line)
    return failures


def _compare(text: str, module: ModuleType, document: Path, line: int) -> int:
    test = doctest.DocTestParser().get_doctest(text, {}, document.name, str(document), line - 1)
    test.globs = module.__dict__
    return doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False).failed


if __name__ == "__main__":
    sys.exit(min(1, run(Path(sys.argv[1]), sys.argv[2])))
