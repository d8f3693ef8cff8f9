"""The listeners of a worker, out of the sockets that gunicorn hands it."""

from __future__ import annotations

import _socket
import contextlib
from collections.abc import Iterable
from typing import Any

from longconn.http import environ as environs
from longconn.http.head import HeadReader
from longconn.parking.lot import Listener, Lot
from longconn.settings import Settings

__all__ = ["make_listeners"]


def make_listeners(sockets: Iterable[Any], lot: Lot, cfg: Any, settings: Settings) -> list[Listener]:
    """Take `sockets` over. Their options are set here once: connections inherit them."""
    reserved = {address.rpartition("//")[2] for address in settings.reserved_listeners}
    listeners = []
    for sock in sockets:
        name = sock.getsockname()
        plain = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        plain.setblocking(False)
        _set_options(plain, settings)
        listener = Listener(plain, lot, secure=cfg.is_ssl, reserved=_is_among(name, reserved))
        listener.environ = environs.template(cfg, listener.name)
        listener.environ["longconn.reserved_listener"] = listener.reserved
        listener.reader = HeadReader(cfg, secure=listener.secure)
        listeners.append(listener)
    return listeners


def _set_options(plain: Any, settings: Settings) -> None:
    """Options of a listener, which its connections inherit."""
    if plain.family not in (_socket.AF_INET, _socket.AF_INET6):
        return
    options = [(_socket.IPPROTO_TCP, "TCP_NODELAY", 1)]
    if settings.tcp_keepalive:
        options += [
            (_socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
            (_socket.IPPROTO_TCP, "TCP_KEEPIDLE", settings.tcp_keepalive),
            (_socket.IPPROTO_TCP, "TCP_KEEPINTVL", max(1, settings.tcp_keepalive // 4)),
            (_socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
        ]
    if settings.tcp_user_timeout:
        options.append((_socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", int(settings.tcp_user_timeout * 1000)))
    for level, name, value in options:
        number = getattr(_socket, name, None)
        if number is not None:  # not every platform has all of them
            with contextlib.suppress(OSError):
                plain.setsockopt(level, number, value)


def _is_among(name: Any, addresses: set[str]) -> bool:
    if isinstance(name, tuple):
        host, port = name[0], name[1]
        return not addresses.isdisjoint((f"{host}:{port}", f"[{host}]:{port}", f":{port}"))  # the last: on any host
    text = name.decode() if isinstance(name, bytes) else str(name)
    return text in addresses or f"unix:{text}" in addresses
