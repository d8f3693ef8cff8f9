from __future__ import annotations

import subprocess
import sys

import flask
import pytest

from service.middleware import chain
from service.middleware.chain import CHAIN, build_chain, compose, refuse_unknown_names
from service.middleware.link import Proceed
from service.model import Caller
from service.settings import Settings, SettingsError


class Anyone:
    def verify(self, token: str) -> Caller:
        return Caller(1, "admin")


class Unlimited:
    def acquire(self) -> None:
        pass


def build(**values: object) -> list[chain.Middleware]:
    settings = Settings(token_secret="x" * 32, **values)  # type: ignore[arg-type]  # checked by the model
    return build_chain(settings, authenticator=Anyone(), limiter=Unlimited())


def test_the_chain_has_one_link_for_each_name_in_the_declared_order() -> None:
    names = [type(link).__module__.rpartition(".")[2] for link in build()]
    assert list(CHAIN) == names


@pytest.mark.parametrize("name", CHAIN)
def test_every_link_can_be_switched_off_by_its_name(name: str) -> None:
    names = [type(link).__module__.rpartition(".")[2] for link in build(middleware_off=(name,))]
    assert [each for each in CHAIN if each != name] == names


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        SettingsError, match=r"middleware_off: no middleware is named tracing; there are request_id, .*"
    ):
        build(middleware_off=("trace", "tracing"))


def test_names_can_be_checked_without_loading_the_application() -> None:
    code = "import sys, service.middleware.chain; sys.exit('flask' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_no_unknown_names_means_no_refusal() -> None:
    refuse_unknown_names(())
    refuse_unknown_names(CHAIN)


def test_the_first_link_is_the_outermost() -> None:
    calls: list[str] = []

    def link(name: str) -> chain.Middleware:
        def call(proceed: Proceed) -> flask.Response:
            calls.append(f"{name} in")
            response = proceed()
            calls.append(f"{name} out")
            return response

        return call

    def innermost() -> flask.Response:
        calls.append("view")
        return flask.Response()

    compose([link("outer"), link("inner")], innermost)()
    assert ["outer in", "inner in", "view", "inner out", "outer out"] == calls
