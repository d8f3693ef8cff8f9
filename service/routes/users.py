"""`/api/v1/users`: users as a collection of versioned resources.

The ETag is the version. Whoever changes a user says in If-Match which version they read, so that no change is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import Blueprint, Response, jsonify, request, url_for
from flask.blueprints import BlueprintSetupState
from werkzeug.routing import IntegerConverter

from service.errors import PreconditionFailed, PreconditionRequired, ValidationFailed
from service.model import User
from service.routes.bodies import JSON, MERGE_PATCH, json_object
from service.routes.callers import current_caller
from service.services.users import (
    LARGEST_PAGE,
    UserChanges,
    UserService,
    parse_new_user,
    parse_patch,
    parse_replacement,
)

__all__ = ["create_users_blueprint"]

PAGE = 20
NUMBER_DIGITS = 18
"""Digits of the largest number read from a request: all of them fit the database's 64 bits."""

ETAG = re.compile(r'(?P<weak>W/)?"(?P<tag>[\x21\x23-\x7e\x80-\xff]*)"')
"""As RFC 9110 has it (8.8.3)."""


def _nothing(_: int) -> None:
    """For who is not interested."""


class _NumberConverter(IntegerConverter):
    """A number of a user. The base takes the digits of other scripts too, so one user would have many addresses."""

    regex = rf"[0-9]{{1,{NUMBER_DIGITS}}}"


def create_users_blueprint(
    user_service: UserService,
    *,
    on_removed: Callable[[int], object] = _nothing,
    on_role_changed: Callable[[int], object] = _nothing,
) -> Blueprint:
    """The routes of the users. `on_removed(user_id)` is called when one is gone, `on_role_changed(user_id)` when one has
    another role than before; they must not wait."""
    blueprint = Blueprint("users", __name__, url_prefix="/api/v1/users")
    blueprint.record_once(_know_numbers)

    @blueprint.get("")
    def list_users() -> Response:
        current_caller()
        after, limit = _page_asked_for()
        page = user_service.page(after=after, size=limit)
        response = jsonify(users=[_document(user) for user in page.users], next=page.next)
        if page.next is not None:
            following = url_for(".list_users", limit=limit, after=page.next)
            response.headers["Link"] = f'<{following}>; rel="next"'
        return response

    @blueprint.post("")
    def create_user() -> Response:
        user = user_service.create(current_caller(), parse_new_user(json_object(request)))
        response = _representation(user)
        response.status_code = 201
        response.headers["Location"] = url_for(".get_user", user_id=user.id)
        return response

    @blueprint.get("/<number:user_id>")
    def get_user(user_id: int) -> Response:
        current_caller()
        user = user_service.get(user_id)
        response = _representation(user)
        # If-None-Match alone: for If-Match the framework would answer 412 with the user as its body.
        if request.if_none_match.contains_weak(str(user.version)):
            response.status_code = 304
        return response

    @blueprint.put("/<number:user_id>")
    def replace_user(user_id: int) -> Response:
        version = _version_to_change()
        changes = parse_replacement(json_object(request))
        return _changed(user_service, on_role_changed, user_id, version, changes)

    @blueprint.patch("/<number:user_id>")
    def patch_user(user_id: int) -> Response:
        version = _version_to_change()
        changes = parse_patch(json_object(request, JSON, MERGE_PATCH))
        return _changed(user_service, on_role_changed, user_id, version, changes)

    @blueprint.delete("/<number:user_id>")
    def remove_user(user_id: int) -> Response:
        version = _version_to_change() if "If-Match" in request.headers else None
        user_service.remove(current_caller(), user_id, version)
        on_removed(user_id)
        return Response(status=204)

    return blueprint


def _know_numbers(state: BlueprintSetupState) -> None:
    state.app.url_map.converters["number"] = _NumberConverter


def _changed(
    user_service: UserService,
    on_role_changed: Callable[[int], object],
    user_id: int,
    version: int | None,
    changes: UserChanges,
) -> Response:
    caller = current_caller()
    before = None if changes.role is None else user_service.role(user_id)
    user = user_service.change(caller, user_id, version, changes)
    if before not in (None, user.role):
        on_role_changed(user_id)
    return _representation(user)


def _representation(user: User) -> Response:
    response = jsonify(_document(user))
    response.set_etag(str(user.version))
    return response


def _document(user: User) -> dict[str, object]:
    return {
        "id": user.id,
        "name": user.name,
        "email": user.email,
        "role": user.role,
        "version": user.version,
        "created_at": user.created_at.isoformat().replace("+00:00", "Z"),
        "updated_at": user.updated_at.isoformat().replace("+00:00", "Z"),
    }


def _page_asked_for() -> tuple[int, int]:
    limit = _number(request.args.get("limit", str(PAGE)))
    after = _number(request.args.get("after", "0"))
    if limit is None or not 1 <= limit <= LARGEST_PAGE:
        raise ValidationFailed(f"limit must be a whole number from 1 to {LARGEST_PAGE}.")
    if after is None:
        raise ValidationFailed("after must be the value of next in the page before.")
    return after, limit


def _version_to_change() -> int | None:
    """The version that If-Match names, or None for `*`, which matches any."""
    field = request.headers.get("If-Match", "").strip()
    if field == "*":
        return None
    if not field:
        raise PreconditionRequired("Send If-Match with the ETag of the version that you read, or * to overwrite any.")
    etag = ETAG.fullmatch(field)
    if etag is None:
        raise ValidationFailed("If-Match takes one ETag in double quotes here, or *.")
    version = _number(etag["tag"])
    if etag["weak"] or version is None or etag["tag"] != str(version):
        raise PreconditionFailed("If-Match names no version of a user. Send the ETag as you got it.")
    return version


def _number(text: str) -> int | None:
    # int() alone would take signs, blanks, underscores and the digits of other scripts.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS else None
