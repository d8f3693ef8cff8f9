"""The WSGI environment of a request, equal to the one that gunicorn's workers make, key by key."""

from __future__ import annotations

import os
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.errors import ConfigurationProblem

__all__ = ["ErrorStream", "build", "template"]

_MOST_KEYS = 1024
_keys: dict[str, str] = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}
"""Field names to their keys. Bounded: names are the client's."""

_script_name = ""


class ErrorStream:
    """`wsgi.errors`: whatever gunicorn's error log writes to at that moment; a log may be reopened."""

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def write(self, text: str) -> None:
        """Write to the error log's streams."""
        wsgi.WSGIErrorsWrapper(self._cfg).write(text)

    def writelines(self, lines: Any) -> None:
        """Write every line of `lines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing is kept back."""


def template(cfg: Any, listener_name: Any) -> dict[str, Any]:
    """What is the same in all environments of one listener."""
    environ: dict[str, Any] = wsgi.base_environ(cfg)
    environ["wsgi.errors"] = ErrorStream(cfg)
    environ["wsgi.multithread"] = True
    environ["SCRIPT_NAME"] = os.environ.get("SCRIPT_NAME", "")
    if isinstance(listener_name, tuple):
        environ["SERVER_NAME"] = listener_name[0]
        environ["SERVER_PORT"] = str(listener_name[1])
    return environ


def build(base: dict[str, Any], request: Any, address: Any, listener_name: Any) -> dict[str, Any]:
    """The environment of `request`, but for `wsgi.input`, `gunicorn.socket` and `wsgi.early_hints`.

    Raises `ConfigurationProblem` when the path does not start with SCRIPT_NAME.
    """
    environ = base.copy()
    environ["REQUEST_METHOD"] = request.method
    environ["QUERY_STRING"] = request.query
    environ["RAW_URI"] = request.uri
    version = request.version
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if version == (1, 1) else f"HTTP/{version[0]}.{version[1]}"
    environ["wsgi.url_scheme"] = request.scheme
    keys = _keys
    repeated: dict[str, list[str]] | None = None
    for name, value in request.headers:
        key = keys.get(name) or _key(name)
        if key in environ:
            if name == "CONTENT-TYPE":
                environ[key] = value
                continue
            repeated = repeated or {}
            repeated.setdefault(key, [environ[key]]).append(value)
        else:
            environ[key] = value
    if repeated:
        for key, values in repeated.items():
            environ[key] = ",".join(values)
    if isinstance(address, tuple):
        environ["REMOTE_ADDR"] = address[0]
        environ["REMOTE_PORT"] = str(address[1])
    else:
        environ["REMOTE_ADDR"] = address.decode() if isinstance(address, bytes) else address
    if not isinstance(listener_name, tuple):
        _name_server(environ, request, listener_name)
    _set_path(environ, request)
    if request.proxy_protocol_info:
        environ.update(wsgi.proxy_environ(request))
    return environ


def _key(name: str) -> str:
    key = "HTTP_" + name.replace("-", "_")
    if len(_keys) < _MOST_KEYS and len(name) < 64:
        _keys[name] = key
    return key


def _set_path(environ: dict[str, Any], request: Any) -> None:
    path = request.path
    script_name = environ["SCRIPT_NAME"]
    if "HTTP_SCRIPT_NAME" in environ:
        # Only a forwarder that may do so gets this far with it.
        for name, value in request.headers:
            if name == "SCRIPT_NAME":
                script_name = environ["SCRIPT_NAME"] = value
    if script_name:
        if not path.startswith(script_name):
            raise ConfigurationProblem(f"Request path {path!r} does not start with SCRIPT_NAME {script_name!r}")
        path = path[len(script_name) :]
    environ["PATH_INFO"] = util.unquote_to_wsgi_str(path) if "%" in path else path


def _name_server(environ: dict[str, Any], request: Any, listener_name: Any) -> None:
    # A unix socket has no name that an application could use: gunicorn takes the one that the client asked for.
    text = listener_name.decode() if isinstance(listener_name, bytes) else str(listener_name)
    server: list[Any] = text.split(":")
    if len(server) == 1:
        host = environ.get("HTTP_HOST")
        server = host.split(":") if host else [text, ""]
        if len(server) == 1:
            server.append({"http": 80, "https": 443}.get(request.scheme, ""))
    environ["SERVER_NAME"] = server[0]
    environ["SERVER_PORT"] = str(server[1])
