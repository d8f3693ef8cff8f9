"""Who has changed what by hand lately, whichever worker was asked to."""

from __future__ import annotations

from typing import Any, Final

from flask import Response, jsonify

from resilience.adapters.admin.orders import describe_workers
from resilience.adapters.flask import current_application
from resilience.adapters.peers import Answers

__all__ = ["list_audit", "merged_audit"]

_MOST: Final = 200


def list_audit() -> Response:
    """The last entries of all workers, the newest first."""
    answers = current_application().peers.ask({"tell": ["audit"]})
    return jsonify(entries=merged_audit(answers), workers=describe_workers(answers))


def merged_audit(answers: Answers) -> list[dict[str, Any]]:
    """The last entries of all workers, the newest first."""
    entries = []
    for worker, answer in answers.by_worker.items():
        for entry in answer.get("audit", ()):
            told = {key: value for key, value in entry.items() if key != "number"}
            entries.append({"id": f"{worker}/{entry['number']}", "worker": worker.describe(), **told})
    return sorted(entries, key=lambda entry: (-entry["at"], entry["id"]))[:_MOST]
