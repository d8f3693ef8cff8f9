"""The opening handshake: what is let through, what each refusal says, and the head of the answer."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from longconn.core import handshake
from longconn.core.handshake import Handshake, HandshakeRefused

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
VALID = {
    "REQUEST_METHOD": "GET",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": KEY,
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}


def environ(**changes: str | None) -> dict[str, Any]:
    """A valid request with these variables changed, or left out when they are None."""
    return {name: value for name, value in {**VALID, **changes}.items() if value is not None}


def refusal(**changes: str | None) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as refused:
        handshake.accept(environ(**changes))
    return refused.value


def test_the_example_of_the_rfc_is_accepted() -> None:
    asked = handshake.accept(
        environ(HTTP_ORIGIN="http://example.com", HTTP_SEC_WEBSOCKET_PROTOCOL="chat, superchat", HTTP_HOST="a")
    )
    assert Handshake("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", ("chat", "superchat"), "", "http://example.com") == asked


@pytest.mark.parametrize(
    "changes",
    [
        {"HTTP_CONNECTION": "keep-alive, Upgrade"},  # Firefox
        {"HTTP_CONNECTION": "upgrade"},
        {"HTTP_UPGRADE": "WebSocket"},
        {"HTTP_UPGRADE": "h2c, websocket"},
        {"CONTENT_LENGTH": "0"},
        {"CONTENT_LENGTH": ""},
        {"HTTP_SEC_WEBSOCKET_KEY": f" {KEY} "},
        {"HTTP_SEC_WEBSOCKET_PROTOCOL": ""},
    ],
)
def test_what_clients_and_proxies_send_is_accepted(changes: dict[str, str]) -> None:
    assert Handshake("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") == handshake.accept(environ(**changes))


@pytest.mark.parametrize(
    ("status", "said", "changes"),
    [
        (405, "with GET", {"REQUEST_METHOD": "POST"}),
        (405, "with GET", {"REQUEST_METHOD": "HEAD"}),
        (426, "WebSocket only", {"HTTP_UPGRADE": None}),
        (426, "WebSocket only", {"HTTP_UPGRADE": "h2c"}),
        (426, "Only version 13", {"HTTP_SEC_WEBSOCKET_VERSION": "8"}),
        (426, "Only version 13", {"HTTP_SEC_WEBSOCKET_VERSION": "13, 8"}),
        (400, "Sec-WebSocket-Version is missing", {"HTTP_SEC_WEBSOCKET_VERSION": None}),
        (400, "Connection does not say Upgrade", {"HTTP_CONNECTION": None}),
        (400, "Connection does not say Upgrade", {"HTTP_CONNECTION": "close"}),
        (400, "HTTP/1.1", {"SERVER_PROTOCOL": "HTTP/1.0"}),
        (400, "no body", {"CONTENT_LENGTH": "5"}),
        (400, "no body", {"HTTP_TRANSFER_ENCODING": "chunked"}),
        (400, "Key is missing", {"HTTP_SEC_WEBSOCKET_KEY": None}),
        (400, "16 bytes in base64", {"HTTP_SEC_WEBSOCKET_KEY": ""}),
        (400, "16 bytes in base64", {"HTTP_SEC_WEBSOCKET_KEY": "x" * 24}),
        (400, "16 bytes in base64", {"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ="}),
        (400, "16 bytes in base64", {"HTTP_SEC_WEBSOCKET_KEY": f"{KEY},{KEY}"}),
        (400, "16 bytes in base64", {"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ\u00b2=="}),
        (400, "list of different names", {"HTTP_SEC_WEBSOCKET_PROTOCOL": "a b"}),
        (400, "list of different names", {"HTTP_SEC_WEBSOCKET_PROTOCOL": "a, a"}),
        (400, "list of different names", {"HTTP_SEC_WEBSOCKET_PROTOCOL": ","}),
    ],
)
def test_what_opens_no_websocket_is_told_why(status: int, said: str, changes: dict[str, str | None]) -> None:
    refused = refusal(**changes)
    assert status == refused.status
    assert said in refused.message


def test_a_refusal_says_what_would_be_accepted() -> None:
    assert (("Allow", "GET"),) == refusal(REQUEST_METHOD="PUT").fields
    assert (("Upgrade", "websocket"),) == refusal(HTTP_UPGRADE=None).fields
    assert ("Sec-WebSocket-Version", "13") in refusal(HTTP_SEC_WEBSOCKET_VERSION="7").fields
    assert ("Sec-WebSocket-Version", "13") in refusal(HTTP_SEC_WEBSOCKET_VERSION=None).fields


def test_the_subprotocol_is_the_first_that_both_know() -> None:
    asked = Handshake("", ("bearer.abc", "json.v2", "json.v1"))
    assert "json.v2" == asked.choose(("json.v1", "json.v2"))
    assert "" == asked.choose(("xml",))


def test_the_head_is_what_the_rfc_says() -> None:
    asked = Handshake("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", ("chat", "superchat"))
    head = handshake.head(
        asked,
        subprotocol="chat",
        extensions="permessage-deflate",
        fields=[("Set-Cookie", "a=b"), ("Set-Cookie", "c=d")],
    )
    assert [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "Sec-WebSocket-Protocol: chat",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "Set-Cookie: a=b",
        "Set-Cookie: c=d",
        "",
        "",
    ] == head.decode().split("\r\n")


def test_fields_of_a_body_and_of_the_handshake_are_left_out() -> None:
    asked = Handshake("key")
    fields = [
        ("Content-Type", "text/html"), ("content-length", "0"), ("Connection", "close"), ("Upgrade", "h2c"),
        ("Sec-WebSocket-Accept", "no"), ("Transfer-Encoding", "chunked"), ("Sec-WebSocket-Protocol", "x"),
    ]  # fmt: skip
    assert handshake.head(asked) == handshake.head(asked, fields=fields)


def test_a_subprotocol_that_was_not_offered_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="did not offer the subprotocol 'json'"):
        handshake.head(Handshake("", ("xml",)), subprotocol="json")


@pytest.mark.parametrize(
    "field",
    [("X-A", "b\r\nX-C: d"), ("X-A", "b\n"), ("X A", "b"), ("", "b"), ("X-A", "\x00"), ("X-A\r\n", "b"), ("X-A", "€")],
)
def test_no_field_can_break_out_of_its_line(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="not a field of HTTP"):
        handshake.head(Handshake("key"), fields=[field])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"HTTP_UPGRADE": "other"},
        {"HTTP_CONNECTION": "close"},
        {"HTTP_SEC_WEBSOCKET_VERSION": "12"},
        {"HTTP_SEC_WEBSOCKET_KEY": "short"},
        {"HTTP_SEC_WEBSOCKET_KEY": None},
        {"HTTP_SEC_WEBSOCKET_VERSION": None},
    ],
)
def test_another_implementation_accepts_the_same_and_answers_the_same_key(changes: dict[str, str | None]) -> None:
    asked = environ(**changes)
    names = {name: name[5:].replace("_", "-").title() for name in asked if name.startswith("HTTP_")}
    theirs = ServerProtocol().accept(Request("/", Headers({names[name]: asked[name] for name in names})))
    if theirs.status_code == 101:
        assert handshake.accept(asked).accept_key == theirs.headers["Sec-WebSocket-Accept"]
    else:
        assert refusal(**changes).status in (400, 426)
