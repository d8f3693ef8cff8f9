"""How the address of a file of shared memory is written, and where that file is."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["Addresses"]

_FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())  # noqa: S108

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Addresses(NamedTuple):
    """The addresses of one kind of file: `default` is the name of one that says none, `ending` tells the kind (and its
    layout) from others, `option` is how one says how many places there are, `most` at most."""

    default: str
    ending: str
    option: str
    most: int

    def parse(self, uri: str) -> tuple[Path, int | None]:
        """The file that an address names, and the number of places if it says one. Raises `ValueError`."""
        parts = urlsplit(uri)
        if parts.scheme != "shm" or not uri.startswith("shm://") or parts.fragment:
            raise ValueError(f"{uri!r} names no shared memory: use shm://, shm://name or shm:///absolute/path")
        places = self._places(uri, parts.query)
        path = unquote(parts.path)
        if parts.netloc:
            if path not in ("", "/") or not _NAME.fullmatch(parts.netloc):
                raise ValueError(
                    f"{uri!r}: a name is up to 64 letters, digits, dots, dashes and underscores, and does not begin with a "
                    "dot; a path has three slashes, shm:///absolute/path"
                )
            return self._named(parts.netloc), places
        if not path:
            return self._named(self.default), places
        if path.endswith("/") or "\0" in path:
            raise ValueError(f"{uri!r}: the path is that of a file")
        return Path(path), places

    def _named(self, name: str) -> Path:
        # The user and the layout are part of the name, so that neither another user's service nor another version is in
        # the way.
        return _FOLDER / f"seawall-{os.geteuid()}-{name}.{self.ending}"

    def _places(self, uri: str, query: str) -> int | None:
        options = dict(parse_qsl(query, keep_blank_values=True))
        number = options.pop(self.option, None)
        if options:
            raise ValueError(f"{uri!r}: there is no option {min(options)!r}, only {self.option}")
        if number is None:
            return None
        if not number.isascii() or not number.isdecimal() or not 1 <= int(number) <= self.most:
            raise ValueError(f"{uri!r}: {self.option}={number}: a whole number from 1 to {self.most:,} is needed")
        return int(number)
