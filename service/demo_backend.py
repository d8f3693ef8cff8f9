"""A backend to try circuits on: a process of its own that fails and dawdles as told.

    curl -X POST '127.0.0.1:8002/settings?failure_rate=1'   every answer is a 500 from now on
    curl -X POST '127.0.0.1:8002/settings?failure_rate=0'   and none any more
    curl -X POST '127.0.0.1:8002/settings?latency=0.5'      every answer takes half a second
    curl '127.0.0.1:8002/settings'                          what is set

Any other path answers with what arrived. This module imports the standard library only, so that it starts at once.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Behaviour", "DemoBackend", "app"]

RANGES: Final[Mapping[str, float]] = {"failure_rate": 1, "latency": 60}
"""What can be set, from 0 up to this."""

SHOWN: Final = (
    "Host",
    "User-Agent",
    "Content-Type",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Request-ID",
    "traceparent",
)
"""The request fields that an answer repeats."""

BLOCK: Final = 65_536


@dataclass(frozen=True, slots=True)
class Behaviour:
    """`failure_rate`: the share of answers that are a 500, from 0 to 1. `latency`: seconds before each, up to 60."""

    failure_rate: float = 0.0
    latency: float = 0.0


class DemoBackend:
    """The WSGI application. What is set holds for the process."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self._served = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        status, document = self._answer(environ)
        body = json.dumps(document).encode() + b"\n"
        start_response(
            f"{status.value} {status.phrase}",
            [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: WSGIEnvironment) -> tuple[HTTPStatus, Mapping[str, Any]]:
        if environ["PATH_INFO"] == "/settings":
            return self._answer_settings(environ)
        self._served += 1
        served = self._served
        arrived = _describe(environ)
        time.sleep(self.behaviour.latency)
        if random.random() < self.behaviour.failure_rate:  # noqa: S311 - which answers fail is no secret
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "failing as told", "served": served}
        return HTTPStatus.OK, {**arrived, "served": served}

    def _answer_settings(self, environ: WSGIEnvironment) -> tuple[HTTPStatus, Mapping[str, Any]]:
        if environ["REQUEST_METHOD"] == "POST":
            try:
                self.behaviour = replace(self.behaviour, **_parse(environ["QUERY_STRING"]))
            except ValueError as error:
                return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, {"error": "/settings takes GET and POST"}
        return HTTPStatus.OK, asdict(self.behaviour)


def _parse(query: str) -> dict[str, float]:
    """The settings in a query. Raises `ValueError` saying what is accepted."""
    given = parse_qsl(query, keep_blank_values=True)
    if not given or any(name not in RANGES for name, _ in given):
        accepted = " and ".join(f"{name}=0..{largest:g}" for name, largest in RANGES.items())
        raise ValueError(f"give {accepted} in the query: POST /settings?failure_rate=1")
    return {name: _number(name, text) for name, text in given}


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= RANGES[name]:
        raise ValueError(f"{name} must be a number from 0 to {RANGES[name]:g}")
    return number


def _describe(environ: WSGIEnvironment) -> dict[str, Any]:
    fields = {name: environ.get(_variable(name)) for name in SHOWN}
    return {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "query": environ["QUERY_STRING"],
        "headers": {name: value for name, value in fields.items() if value},
        "body_bytes": sum(map(len, iter(lambda: environ["wsgi.input"].read(BLOCK), b""))),
    }


def _variable(field: str) -> str:
    name = field.upper().replace("-", "_")
    return name if name == "CONTENT_TYPE" else f"HTTP_{name}"


app = DemoBackend()
