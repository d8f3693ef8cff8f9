from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest

from service.middleware.recovery import Recovery
from service.middleware.request_timeout import RequestTimeout
from tests.support.edge import serve


def test_a_request_that_takes_too_long_is_interrupted_where_it_waits() -> None:
    given_back = []

    def slow() -> str:
        try:
            gevent.sleep(60)
        finally:
            given_back.append(True)
        return "late"

    response = serve([Recovery(), RequestTimeout(seconds=0.01)], slow=slow).test_client().get("/slow")
    assert response.json is not None
    assert (504, 20007, [True]) == (response.status_code, response.json["code"], given_back)
    assert "0.01 s" in response.json["detail"]


def test_a_request_in_time_is_left_alone_also_afterwards() -> None:
    client = serve([Recovery(), RequestTimeout(seconds=0.02)], quick=lambda: "done").test_client()
    assert "done" == client.get("/quick").text
    gevent.sleep(0.04)


@pytest.mark.parametrize("error", [ValueError, gevent.GreenletExit])
def test_the_timer_is_stopped_however_the_request_ends(error: type[BaseException]) -> None:
    def broken() -> str:
        raise error

    client = serve([RequestTimeout(seconds=0.02)], broken=broken).test_client()
    if error is ValueError:
        assert 500 == client.get("/broken").status_code
    else:
        with pytest.raises(error):
            client.get("/broken")
    gevent.sleep(0.04)


def test_a_timeout_of_the_views_own_is_not_taken_for_the_requests() -> None:
    def own() -> str:
        with gevent.Timeout(0.01):
            gevent.sleep(60)
        return "unreached"

    response = serve([Recovery(), RequestTimeout(seconds=60)], own=own).test_client().get("/own")
    assert response.json is not None
    assert 20000 == response.json["code"]


def test_a_view_that_handles_its_own_timeout_goes_on() -> None:
    def own() -> str:
        with gevent.Timeout(0.01, False):  # type: ignore[arg-type]  # False is documented
            gevent.sleep(60)
        return "went on"

    assert "went on" == serve([RequestTimeout(seconds=60)], own=own).test_client().get("/own").text


def test_two_requests_have_a_timer_each() -> None:
    def wait(seconds: float) -> Callable[[], str]:
        def view() -> str:
            gevent.sleep(seconds)
            return "done"

        return view

    app = serve([Recovery(), RequestTimeout(seconds=0.05)], slow=wait(60), quick=wait(0.001))
    slow = gevent.spawn(lambda: app.test_client().get("/slow").status_code)
    quick = gevent.spawn(lambda: app.test_client().get("/quick").status_code)
    assert (504, 200) == (slow.get(), quick.get())
