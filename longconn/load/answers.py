"""Reading what an HTTP server answers: heads, and bodies in chunks. Bytes in, values out."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["AnswerError", "Chunks", "Head", "read_head"]

MOST_HEAD = 65_536
"""Bytes of a head."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |$)")
_SIZE = re.compile(rb"[0-9a-fA-F]{1,15}(?=[;\r \t]|$)")


class AnswerError(ValueError):
    """What came is not an answer of HTTP/1."""


class Head(NamedTuple):
    """`fields` have names in lower case; one that came twice has both values, a comma between. `rest` follows the head."""

    status: int
    fields: dict[str, str]
    rest: bytes


def read_head(data: bytes) -> Head | None:
    """The head at the beginning of `data`; None while it is not whole. Raises `AnswerError`."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MOST_HEAD:
            raise AnswerError(f"a head of more than {MOST_HEAD} bytes")
        if not b"HTTP/1.".startswith(data[:7]):
            raise AnswerError(f"not an answer of HTTP/1: {data[:40]!r}")
        return None
    first, *lines = data[:end].split(b"\r\n")
    status = _STATUS.match(first)
    if status is None:
        raise AnswerError(f"not an answer of HTTP/1: {first[:40]!r}")
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        name, value = name.strip().lower(), value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return Head(int(status[1]), fields, data[end + 4 :])


class Chunks(NamedTuple):
    """Where in a body of chunks the reading stands: `remaining` bytes of a chunk are still to come (with its line end), or the
    beginning of a line, `line`, has been read. At its beginning both are empty."""

    remaining: int = 0
    line: bytes = b""

    def feed(self, data: bytes) -> tuple[bytes, Chunks | None, bytes]:
        """What of the body is in `data`, where the reading then stands (None: the body is over), and what follows the body.

        Trailer fields are not expected. Raises `AnswerError`.
        """
        body: list[bytes] = []
        remaining, data = self.remaining, self.line + data
        while True:
            if remaining:
                taken, data = data[:remaining], data[remaining:]
                # The last two of what remains are the line end, which may come in two parts.
                body.append(taken[: max(0, remaining - 2)])
                remaining -= len(taken)
                if remaining:
                    return b"".join(body), Chunks(remaining), b""
            line, found, after = data.partition(b"\r\n")
            if not found:
                if len(data) > 1024:
                    raise AnswerError(f"no chunk begins with {data[:40]!r}")
                return b"".join(body), Chunks(0, data), b""
            size = _SIZE.match(line)
            if size is None:
                raise AnswerError(f"no chunk begins with {line[:40]!r}")
            remaining, data = int(size[0], 16) + 2, after
            if remaining == 2:  # the last one: an empty line ends the body
                if len(data) < 2:
                    return b"".join(body), Chunks(0, line + found + data), b""
                return b"".join(body), None, data[2:]
