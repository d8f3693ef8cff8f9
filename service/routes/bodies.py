"""JSON bodies and messages, read strictly: what is ambiguous or not JSON is refused with the reason."""

from __future__ import annotations

import functools
import json
import math
from typing import NoReturn

from flask import Request

from service.errors import UnsupportedMediaType, ValidationFailed

__all__ = ["JSON", "MERGE_PATCH", "json_members", "json_object"]

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"


def json_object(request: Request, *media_types: str) -> dict[str, object]:
    """The members of the request's JSON object.

    `media_types` are the ones accepted (default: `application/json`). Raises `UnsupportedMediaType` for another one
    and `ValidationFailed` for a body that is not UTF-8, not JSON, not an object, repeats a name, nests too deeply, or
    holds what other readers understand differently (NaN, 1e999, half a surrogate pair). The app limits the size.
    """
    accepted = media_types or (JSON,)
    if request.mimetype not in accepted:
        raise UnsupportedMediaType(f"Send the body as {' or '.join(accepted)}, and say so in Content-Type.")
    try:
        text = request.get_data(cache=False).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValidationFailed(f"The body is not UTF-8 at byte {error.start}.") from None
    return json_members(text)


def json_members(text: str, what: str = "body") -> dict[str, object]:
    """The members of the JSON object that `text` holds, which is the `what` of something. Raises `ValidationFailed` as
    `json_object` does."""

    def without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise ValidationFailed(f"The {what} gives a name twice; which value counts would be a guess.")
        for text in (*members, *members.values()):
            if isinstance(text, str) and not _is_text(text):
                raise ValidationFailed(f"The {what} holds half of a surrogate pair; send whole characters.")
        return members

    try:
        content = json.loads(
            text,
            object_pairs_hook=without_repetition,
            parse_constant=functools.partial(_refuse_constant, what),
            parse_float=functools.partial(_finite, what),
        )
    except json.JSONDecodeError as error:
        raise ValidationFailed(
            f"The {what} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except RecursionError:
        raise ValidationFailed(f"The {what} nests too deeply.") from None
    except ValueError:
        raise ValidationFailed(f"The {what} holds a number of too many digits.") from None
    if not isinstance(content, dict):
        raise ValidationFailed(f"The {what} must be a JSON object.")
    return content


def _refuse_constant(what: str, name: str) -> NoReturn:
    raise ValidationFailed(f"The {what} holds {name}, which is not JSON.")


def _finite(what: str, number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValidationFailed(f"The {what} holds a number beyond 1e308, which not every reader of JSON has.")
    return value


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
