from __future__ import annotations

from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.adapters.addresses import client_key
from service.errors import NotFound, ValidationFailed
from service.services.backends import (
    HOP_BY_HOP,
    Backends,
    Origin,
    believed_addresses,
    request_headers,
    response_headers,
    target_below,
)
from service.services.ports import BackendResponse

PREFIX = "/api/v1/backends/demo"
ORIGIN = Origin(clients="192.0.2.1", scheme="https", host="api.example")


AWKWARD = ["..", ".", "/", "\\", "%2e", "%2E", "%2f", "%5c", "%25", "%252e", "%3b", ";", "a", "\xe9", "?", "%0a", "%00"]
awkward_paths = st.lists(st.sampled_from(AWKWARD), max_size=8).map("".join)


class SilentBackend:
    def forward(self, method: str, target: str, headers: tuple[tuple[str, str], ...], body: bytes) -> BackendResponse:
        return BackendResponse(200, (), iter(()))


def below(path: str) -> str:
    return target_below(PREFIX + path, PREFIX)


class TestFind:
    def test_finds_a_backend_by_its_name(self) -> None:
        backend = SilentBackend()

        assert backend is Backends({"demo": backend}).find("demo")

    def test_names_the_configured_backends_when_there_is_none_of_that_name(self) -> None:
        with pytest.raises(NotFound, match="no backend is named 'c'; configured: a, b"):
            Backends({"b": SilentBackend(), "a": SilentBackend()}).find("c")

    def test_says_how_to_configure_one_when_there_is_none_at_all(self) -> None:
        with pytest.raises(NotFound, match="set BACKENDS__<name>"):
            Backends({}).find("demo")


class TestTargetBelow:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/", "/"),
            ("/things", "/things"),
            ("/things/", "/things/"),
            ("/things?a=1&b=%2f..%2f", "/things?a=1&b=%2f..%2f"),
            ("/things?", "/things?"),
            ("/a//b", "/a//b"),
            ("/group%2Fproject", "/group%2Fproject"),
            ("/caf%c3%a9", "/caf%c3%a9"),
            ("/caf\xc3\xa9", "/caf%C3%A9"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a:b@c;d=1,e!$&'()*+", "/a:b@c;d=1,e!$&'()*+"),
            ('/x?q="<|>"', '/x?q="<|>"'),
            ("/percent%25twenty", "/percent%25twenty"),
            ("/x?discount=100%", "/x?discount=100%"),
            ("/x?lines=a%0d%0ab", "/x?lines=a%0d%0ab"),
        ],
    )
    def test_passes_on_what_the_caller_encoded_byte_for_byte(self, path: str, expected: str) -> None:
        assert expected == below(path)

    @pytest.mark.parametrize(
        "path",
        [
            "/..",
            "/.",
            "/a/../b",
            "/a/%2e%2e/b",
            "/a/.%2E/b",
            "/..%2fetc",
            "/a%2f..%2f..%2fetc",
            "/..%5cetc",
            "/..\\etc",
            "/%252e%252e/etc",
            "/%252e%252e%252fetc",
            "/..;/etc",
            "/..;x=1/etc",
            "/%2e%2e%3bx/etc",
        ],
    )
    def test_refuses_a_path_that_a_backend_could_take_for_one_outside(self, path: str) -> None:
        with pytest.raises(ValidationFailed, match=r"resolve \. and \.\. before sending"):
            below(path)

    @pytest.mark.parametrize("path", ["/a%0d%0ab", "/a%00", "/a%250a", "/%0D"])
    def test_refuses_encoded_line_breaks_and_nul_in_the_path(self, path: str) -> None:
        with pytest.raises(ValidationFailed, match="line break or NUL"):
            below(path)

    @pytest.mark.parametrize("path", ["/a b", "/a\r\nHost: evil", "/a\x00", "/a\x7f", "/a?b=\n", "/a#b"])
    def test_refuses_what_no_request_line_may_hold(self, path: str) -> None:
        with pytest.raises(ValidationFailed, match="percent-encode"):
            below(path)

    @pytest.mark.parametrize("path", ["/100%", "/%zz", "/%2"])
    def test_refuses_escapes_that_are_none(self, path: str) -> None:
        with pytest.raises(ValidationFailed, match="write a percent sign as %25"):
            below(path)

    def test_refuses_encodings_piled_on_encodings_without_unpacking_them_all(self) -> None:
        with pytest.raises(ValidationFailed, match="more than 2 times over"):
            below("/%" + "25" * 4000 + "41")

    def test_refuses_two_slashes_at_the_beginning_which_could_name_another_host(self) -> None:
        with pytest.raises(ValidationFailed, match="two slashes"):
            below("//evil.example/x")

    @pytest.mark.parametrize("target", ["/api/v1/backends/demo%2Fx/y", "/api/v1%2Fbackends/demo/x/y", "/elsewhere"])
    def test_refuses_a_prefix_that_was_put_together_by_decoding(self, target: str) -> None:
        with pytest.raises(ValidationFailed, match="without encoded slashes"):
            target_below(target, PREFIX)

    def test_knows_its_prefix_in_another_encoding(self) -> None:
        assert "/x" == target_below("/api/v1/backends/%64emo/x", PREFIX)

    def test_takes_the_absolute_form_of_a_target(self) -> None:
        assert "/x?y=http://z" == target_below(f"http://evil.example{PREFIX}/x?y=http://z", PREFIX)

    @given(st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=60) | awkward_paths)
    def test_never_leaves_the_base_url_nor_changes_the_host(self, path: str) -> None:
        try:
            target = below("/" + path)
        except ValidationFailed:
            return

        assert target.isascii()
        assert target.isprintable()
        assert " " not in target
        parts = urlsplit("http://backend.example/base" + target)
        assert "backend.example" == parts.netloc
        once = unquote_to_bytes(parts.path)
        for decoded in (once, unquote_to_bytes(once)):
            assert not {b".", b".."} & set(decoded.replace(b"\\", b"/").split(b"/"))
            assert not {0, 10, 13} & set(decoded)

    @given(
        st.lists(st.text("abcXYZ019-._~!$&'()*+,=:@", min_size=1, max_size=8), min_size=1, max_size=6),
        st.none() | st.text("abc019-._~!$&'()*+,;=:@/?%", max_size=20),
    )
    def test_keeps_every_ordinary_path_and_query_as_it_is(self, segments: list[str], query: str | None) -> None:
        path = "/" + "/".join(f"{segment}%2f%41" for segment in segments if segment.strip("."))
        target = path + ("" if query is None else f"?{query}")

        assert target == below(target)


class TestBelievedAddresses:
    @pytest.mark.parametrize(
        ("peer", "claimed", "trusted", "expected"),
        [
            ("192.0.2.1", "", 0, "192.0.2.1"),
            ("192.0.2.1", "203.0.113.9", 0, "192.0.2.1"),
            ("192.0.2.1", "203.0.113.9", 1, "203.0.113.9, 192.0.2.1"),
            ("192.0.2.1", "invented, 203.0.113.9", 1, "203.0.113.9, 192.0.2.1"),
            ("192.0.2.1", "203.0.113.9,198.51.100.2", 2, "203.0.113.9, 198.51.100.2, 192.0.2.1"),
            ("192.0.2.1", "203.0.113.9", 2, "203.0.113.9, 192.0.2.1"),
            ("192.0.2.1", "203.0.113.9:4711", 1, "203.0.113.9, 192.0.2.1"),
            ("192.0.2.1", "[2001:db8::1]:4711", 1, "2001:db8::1, 192.0.2.1"),
            ("192.0.2.1", "::ffff:203.0.113.9", 1, "203.0.113.9, 192.0.2.1"),
            ("192.0.2.1", "invented, unknown", 1, "192.0.2.1"),
            ("192.0.2.1", "invented, ", 1, "192.0.2.1"),
            ("192.0.2.1", "unknown, 203.0.113.9", 2, "192.0.2.1"),
            ("192.0.2.1", "203.0.113.9, unknown", 2, "203.0.113.9, 192.0.2.1"),
            ("192.0.2.1", "a\r\nb", 1, "192.0.2.1"),
            (None, "", 0, ""),
        ],
    )
    def test_believes_as_many_entries_as_there_are_trusted_proxies(
        self, peer: str | None, claimed: str, trusted: int, expected: str
    ) -> None:
        assert expected == believed_addresses(peer, claimed, trusted)

    @given(
        peer=st.sampled_from(["192.0.2.1", "2001:db8::9", "::ffff:192.0.2.1"]),
        claimed=st.lists(
            st.ip_addresses().map(str)
            | st.ip_addresses(v=4).map("{}:4711".format)
            | st.ip_addresses(v=6).map("[{}]:4711".format)
            | st.sampled_from(["", " ", "unknown", "_hidden", "1.2.3", "fe80::1%eth0", "[", "]"]),
            max_size=4,
        ).map(",".join),
        trusted=st.integers(0, 5),
    )
    def test_names_the_client_first_whom_the_rate_limit_counts(self, peer: str, claimed: str, trusted: int) -> None:
        client = believed_addresses(peer, claimed, trusted).partition(",")[0]

        assert client_key(peer, claimed, trusted) == client_key(client, None, 0)


class TestRequestHeaders:
    @pytest.mark.parametrize(
        "field",
        [
            ("", "nameless"),
            ("X Y", "a blank in the name"),
            ("X:", "a colon"),
            ("X-\xe9", "not ASCII"),
            ("X\r\nHost", "a line break"),
            ("X-Value", "a\r\nHost: evil"),
            ("X-Value", "a\n b"),
            ("X-Value", "a\x00b"),
            ("X-Value", "\u20ac"),
        ],
    )
    def test_refuses_a_field_that_no_request_may_hold(self, field: tuple[str, str]) -> None:
        with pytest.raises(ValidationFailed, match="header field"):
            request_headers((("X-Before", "a"), field), ORIGIN)

    def test_refuses_a_host_that_is_none_before_it_is_told_to_anybody(self) -> None:
        with pytest.raises(ValidationFailed, match="X-Forwarded-Host"):
            request_headers((), Origin(clients="", scheme="http", host="a\nb"))

    def test_passes_on_every_value_that_a_field_may_have(self) -> None:
        sent = (("X-Value", "a\tb \xe9~"), ("X-Empty", ""), ("!#$%&'*+.^_`|~0-9Az", "1"))

        assert sent == request_headers(sent, ORIGIN)[:3]

    def test_passes_on_what_is_meant_for_the_backend(self) -> None:
        sent = (("Accept", "text/plain"), ("Cookie", "a=1"), ("Content-Type", "text/csv"), ("X-Custom", "y"))

        assert sent == request_headers(sent, ORIGIN)[:4]

    def test_tells_how_the_request_arrived_whatever_the_caller_claims(self) -> None:
        claims = [
            ("X-Forwarded-For", "10.0.0.1"),
            ("x-forwarded-proto", "gopher"),
            ("X-FORWARDED-HOST", "evil"),
            ("X-Forwarded-Port", "1"),
            ("Forwarded", "for=10.0.0.1"),
            ("X-Real-IP", "10.0.0.1"),
        ]

        expected = (
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "api.example"),
        )
        assert expected == request_headers(claims, ORIGIN)

    @pytest.mark.parametrize("name", ["Host", "Content-Length", "Authorization", "Expect", "TE", "Proxy-Authorization"])
    def test_keeps_back_what_belongs_to_this_hop(self, name: str) -> None:
        assert name not in dict(request_headers([(name, "1")], ORIGIN))

    def test_replaces_request_id_and_trace_by_those_of_this_request(self) -> None:
        sent = [("X-Request-ID", "theirs"), ("Traceparent", "theirs"), ("Tracestate", "theirs")]
        origin = Origin(clients="192.0.2.1", scheme="http", host="h", request_id="ours", traceparent="00-ours")

        names = {name: value for name, value in request_headers(sent, origin) if not name.startswith("X-Forwarded")}
        assert {"X-Request-ID": "ours", "traceparent": "00-ours"} == names

    def test_leaves_the_callers_request_id_and_trace_when_there_are_no_others(self) -> None:
        sent = (("X-Request-ID", "theirs"), ("Traceparent", "theirs"), ("Tracestate", "a=b"))

        assert sent == request_headers(sent, ORIGIN)[:3]


class TestResponseHeaders:
    def test_keeps_repeated_fields_apart_and_in_order(self) -> None:
        sent = (("Set-Cookie", "a=1"), ("X-Other", "x"), ("Set-Cookie", "b=2"))

        assert sent == response_headers(sent, 200)

    @pytest.mark.parametrize("name", ["Connection", "Keep-Alive", "Trailer", "Upgrade", "Proxy-Authenticate", "Date"])
    def test_keeps_back_what_belongs_to_this_hop(self, name: str) -> None:
        assert () == response_headers([(name, "x")], 200)

    @pytest.mark.parametrize(
        ("sent", "status", "expected"),
        [
            ([("content-length", "5")], 200, (("Content-Length", "5"),)),
            ([("Content-Length", "5"), ("Content-Length", "5")], 200, (("Content-Length", "5"),)),
            ([("Content-Length", "5"), ("Content-Length", "6")], 200, ()),
            ([("Content-Length", "5"), ("Transfer-Encoding", "chunked")], 200, ()),
            ([("Content-Length", "+5")], 200, ()),
            ([("Content-Length", "0")], 204, ()),
            ([("Content-Length", "5")], 304, ()),
        ],
    )
    def test_says_the_length_only_where_it_is_that_of_the_body(
        self, sent: list[tuple[str, str]], status: int, expected: tuple[tuple[str, str], ...]
    ) -> None:
        assert expected == response_headers(sent, status)

    @pytest.mark.parametrize(
        "field", [("X Y", "1"), ("X\r\nY", "1"), ("", "1"), ("X", "a\r\nSet-Cookie: b"), ("X", "\0")]
    )
    def test_drops_what_no_server_may_send(self, field: tuple[str, str]) -> None:
        assert () == response_headers([field], 200)


token = st.text("abcdefghijklmnopqrstuvwxyzABC-", min_size=1, max_size=12)
fields = st.lists(st.tuples(token | st.sampled_from(sorted(HOP_BY_HOP)), st.text("abc ,-=", max_size=20)), max_size=8)


@given(fields, st.lists(token, max_size=3))
def test_nothing_about_one_connection_reaches_another(sent: list[tuple[str, str]], named: list[str]) -> None:
    sent = [*sent, ("Connection", ", ".join(named))]

    for passed in (response_headers(sent, 200), request_headers(sent, ORIGIN)):
        names = {name.lower() for name, _ in passed}
        assert not names & HOP_BY_HOP
        assert not names & {name.lower() for name in named}
        assert not any(name.startswith("proxy-") for name in names)


@given(fields)
def test_what_is_passed_on_is_what_came_in_and_in_the_same_order(sent: list[tuple[str, str]]) -> None:
    remaining = iter(sent)

    for field in response_headers(sent, 200):
        assert field[0].lower() == "content-length" or field in remaining
