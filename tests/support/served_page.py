"""Runs a section of a document whose code is an application and what its clients see.

The section's block in Python that makes `app` is served by gunicorn; what its `pycon` blocks ask at 127.0.0.1:8000 is asked
there, and each answer must be what is printed: `python -m tests.support.served_page FILE SECTION PORT`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.support.longconn_server import PARKING, gunicorn_server
from tests.support.page import blocks_of, compare

__all__ = ["application_of", "check_served_section", "served_sections_of"]

ROOT = Path(__file__).parents[2]
DOCUMENTED_ADDRESS = "127.0.0.1:8000"


def served_sections_of(document: Path) -> list[str]:
    """The headings below which there is an application, in order."""
    return list(dict.fromkeys(block.section for block in blocks_of(document) if _is_application(block.text)))


def application_of(document: Path, section: str) -> str:
    """The application of a section."""
    (found,) = [block.text for block in blocks_of(document) if block.section == section and _is_application(block.text)]
    return found


def check_served_section(document: Path, section: str, folder: Path, *, worker: str = PARKING) -> None:
    """The application of a section runs under gunicorn, and its clients see what is printed. `folder` is for its files."""
    (folder / "app.py").write_text(application_of(document, section), encoding="utf-8")
    with gunicorn_server(
        *("--pythonpath", f"{ROOT},{folder}"),
        app="app:app",
        worker=worker,
        environment={"LONGCONN_CHANNELS": str(folder / "channels")},
    ) as server:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.served_page", str(document), section, str(server.port)],
            cwd=ROOT,
            env={**os.environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (0, "") == (done.returncode, done.stderr), done.stdout + server.log()
        assert 0 == server.stop()
        assert "Traceback" not in server.log(), server.log()


def _is_application(text: str) -> bool:
    return "\napp = Flask(" in text


def run(document: Path, section: str, port: int) -> int:
    """Ask what a section asks; the number of answers that differ from what is printed."""
    module = ModuleType("page")
    return sum(
        compare(block.text.replace(DOCUMENTED_ADDRESS, f"127.0.0.1:{port}"), module, document, block.line)
        for block in blocks_of(document)
        if block.section == section and block.language == "pycon"
    )


if __name__ == "__main__":
    sys.exit(min(1, run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
