"""What the answer to a request says of its limits: fields, refusals, and what is settled when the answer is made."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from flask import Response, current_app
from werkzeug.exceptions import HTTPException, TooManyRequests

from resilience.adapters.fields import Style, problem_details, retry_after_field, write_fields
from resilience.core.limiter import Decision
from resilience.errors import RateLimited, Rejected, StorageUnavailable

__all__ = ["Refused", "Served", "made_response", "render_rejection"]

_LOG = logging.getLogger(__name__)
_WITH_RETRY_AFTER = (429, 503)


class Refused(RateLimited, HTTPException):
    """A refusal of a request, which whoever takes errors apart by themselves (extensions, a blueprint's handler for every
    `Exception`) knows as an HTTP error too.

    The class has no `code`, so that handlers for `RateLimited` go before those for 429; the object has one.
    """

    code = None
    said: int | None = None
    """The status that it was rendered with, once it was."""
    __str__ = Exception.__str__

    @classmethod
    def of(cls, rejection: RateLimited) -> None:
        """Make `rejection` one of these: who raises it holds it already."""
        rejection.__class__ = cls
        vars(rejection).update(code=rejection.status, description=str(rejection))

    def get_response(self, environ: Any = None, scope: Any = None) -> Any:  # noqa: ARG002  # werkzeug's signature
        """What the refused caller gets."""
        return render_rejection(self)


class Served:
    """What one request has met: decisions for the fields, a refusal, what is to be done when its response is made.

    Made for nearly every request, and its `finish` is run in every one of those: nothing that few need is stored, and what
    is always needed is reached in one step.
    """

    is_busy = False
    """Whether there is more to do than to write fields."""
    others: dict[str, tuple[tuple[str, ...], Decision]] | None = None
    """The decisions of policies other than the first."""
    early: Callable[[], object] | None = None
    """Gives back what was taken before the view."""
    rejection: RateLimited | None = None
    settlements: Sequence[Callable[[Any], object]] = ()
    filtered: bool | None = None

    def __init__(
        self, headers: Style, policy: str = "", titles: tuple[str, ...] = (), decision: Decision | None = None
    ) -> None:
        self.headers = headers
        self.policy = policy
        self.titles = titles
        self.decision = decision

    def observe(self, policy: str, titles: tuple[str, ...], decision: Decision) -> None:
        """Keep the last decision of each policy."""
        if self.decision is None or policy == self.policy:
            self.policy, self.titles, self.decision = policy, titles, decision
            return
        if self.others is None:
            self.others = {}
        self.others[policy] = (titles, decision)

    def finish(self, response: Response) -> Response:
        """What there is to do when the response is made. Nothing of it may cost the caller the response."""
        if self.is_busy:
            self._settle(response)
            self._refuse(response)
        if self.decision is not None and self.headers != "off":
            observed = [(self.titles, self.decision)]
            if self.others is not None:
                observed += self.others.values()
            unix_time = 0.0 if self.headers == "draft" else time.time()
            # Straight into the list: names and values are ours, so that none of the checks on the way could find anything.
            write_fields(response.headers._list, observed, self.headers, unix_time=unix_time)  # noqa: SLF001
        return response

    def _settle(self, response: Response) -> None:
        # Emptied first: a response may be made anew, for what goes wrong after this one.
        settlements, self.settlements = self.settlements, ()
        for settle in settlements:
            try:
                settle(response)
            except Exception:  # noqa: BLE001  # deduct_when is the application's
                _LOG.exception("a limit took nothing after the response")

    def _refuse(self, response: Response) -> None:
        """All or nothing: who was refused by a limit of the view's has not used up those before it.

        Any other answer than a refusal means that the application has borne it and served the request after all.
        """
        rejection = self.rejection
        if rejection is None or response.status_code < 400:
            return
        refusals = (*_WITH_RETRY_AFTER, getattr(rejection, "said", None))
        if self.early is not None and response.status_code in refusals:
            give_back, self.early = self.early, None
            try:
                give_back()
            except StorageUnavailable as error:
                _LOG.warning("tokens that were not used are lost: %s", error)
        if response.status_code in _WITH_RETRY_AFTER and "Retry-After" not in response.headers:
            _add_retry_after(rejection, response)


def render_rejection(rejection: Rejected) -> Response:
    """A rejection as the application wants it said, else as an `application/problem+json` response with Retry-After."""
    return _said(rejection, _rendered(rejection))


def _rendered(rejection: Rejected) -> Response:
    if isinstance(rejection, RateLimited):
        if rejection.response is not None:
            return made_response(rejection)
        # An application may have one way to say 429, whoever says it.
        error = TooManyRequests(str(rejection))
        error.__cause__ = rejection
        handled = current_app.handle_http_exception(error)
        if handled is not error:
            return current_app.make_response(handled)
    response = Response(
        json.dumps(problem_details(rejection)), rejection.status, content_type="application/problem+json"
    )
    _add_retry_after(rejection, response)
    return response


def made_response(rejection: RateLimited) -> Response:
    """What was given as a response as one. Whatever says no status of its own is a refusal."""
    given = rejection.response
    if isinstance(given, str):
        response = Response(given, rejection.status, mimetype="text/plain")
    else:
        response = current_app.make_response(given)
        if response.status_code == 200 and not isinstance(given, Response):
            response.status_code = rejection.status
    if response.status_code in _WITH_RETRY_AFTER and "Retry-After" not in response.headers:
        _add_retry_after(rejection, response)
    return _said(rejection, response)


def _said(rejection: Rejected, response: Response) -> Response:
    if isinstance(rejection, Refused):
        rejection.said = response.status_code
    return response


def _add_retry_after(rejection: Rejected, response: Response) -> None:
    retry_after = retry_after_field(rejection)
    if retry_after is not None:
        response.headers["Retry-After"] = retry_after
