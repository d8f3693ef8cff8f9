"""The mark of views that are open to everyone."""

from __future__ import annotations

from service.routes.access import public


def test_a_public_view_is_marked_and_otherwise_itself() -> None:
    def view() -> str:
        return "answer"

    assert public(view) is view
    assert getattr(view, "is_public", False) is True
