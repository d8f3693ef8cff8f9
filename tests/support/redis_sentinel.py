"""A primary, a replica and three sentinels on loopback ports of their own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from tests.support.redis_node import RedisNode, start_together, wait_until

__all__ = ["SentinelGroup", "running_sentinel"]

_SERVICE = "seawall"
_SENTINEL = """\
sentinel monitor {service} 127.0.0.1 {port} 2
sentinel down-after-milliseconds {service} {down_after}
sentinel failover-timeout {service} 3000
sentinel parallel-syncs {service} 1
"""


class SentinelGroup:
    """The servers of one service. `kill_primary`, `wait_for_new_primary` and `restore` are a failover and its end."""

    service = _SERVICE

    def __init__(self, program: str, folder: Path, *, down_after: float = 1.0) -> None:
        self.program = program
        self.servers = [RedisNode(program, folder) for _ in range(2)]
        self.sentinels = [RedisNode(program, folder) for _ in range(3)]
        self._down_after = round(down_after * 1_000)

    @property
    def uri(self) -> str:
        """The address of the service for `open_storage`."""
        sentinels = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{sentinels}/{self.service}"

    def start(self) -> None:
        """Start all, and return when the sentinels know each other and the replica has copied everything."""
        primary, replica = self.servers
        primary.start_server()
        replica.start_server([("--replicaof", f"127.0.0.1 {primary.port}")])
        start_together(self.servers)
        wait_until(lambda: replica.follows(primary), "the replica has copied the primary")
        settings = _SENTINEL.format(service=self.service, port=primary.port, down_after=self._down_after)
        for sentinel in self.sentinels:
            sentinel.start_sentinel(settings)
        start_together(self.sentinels)
        self._wait_until_ready()

    @property
    def primary(self) -> RedisNode:
        """The primary, as the first sentinel that runs says it."""
        port = next(port for sentinel in self.sentinels if (port := self._primary_port(sentinel)))
        return next(node for node in self.servers if node.port == port)

    @property
    def replica(self) -> RedisNode:
        """The server that is not the primary."""
        primary = self.primary
        return next(node for node in self.servers if node is not primary)

    def kill_primary(self) -> RedisNode:
        """Kill the primary, and return it. What its replica has not received is lost."""
        primary = self.primary
        primary.kill()
        return primary

    def wait_for_new_primary(self, old: RedisNode, *, within: float = 20.0) -> RedisNode:
        """Return the new primary as soon as a sentinel names it in place of `old`, and it takes writes."""

        def promoted() -> bool:
            ports = {self._primary_port(sentinel) for sentinel in self.sentinels} - {None, old.port}
            return any(node.port in ports and node.replication().get("role") == "master" for node in self.servers)

        wait_until(promoted, "the sentinels name a new primary", within=within)
        return next(node for node in self.servers if node is not old)

    def restore(self) -> None:
        """Start again whatever was ended, and return when another failover could happen."""
        for sentinel in self.sentinels:
            if not sentinel.running:
                sentinel.start_again()
        start_together(self.sentinels)
        wait_until(self._settled, "the sentinels agree on a primary that runs")
        primary = self.primary
        for node in self.servers:
            if not node.running:
                node.start_server([("--replicaof", f"127.0.0.1 {primary.port}")])
            elif node is not primary and "master" == node.replication().get("role"):
                node.command(
                    "REPLICAOF", "127.0.0.1", primary.port
                )  # replaced while it lived; sentinels take 10 s more
        start_together([*self.servers, *self.sentinels])
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        wait_until(self._agreed, "the sentinels know each other, the primary and a replica that is well", within=40)

    def _settled(self) -> bool:
        named = {self._primary_port(sentinel) for sentinel in self.sentinels}
        return 1 == len(named) and any(
            node.port in named and node.running and "master" == node.replication().get("role") for node in self.servers
        )

    def _agreed(self) -> bool:
        primary, replica = self.primary, self.replica
        return replica.follows(primary) and all(self._ready(sentinel, primary) for sentinel in self.sentinels)

    def _ready(self, sentinel: RedisNode, primary: RedisNode) -> bool:
        with contextlib.suppress(redis.RedisError, OSError):
            client: Any = sentinel.client
            master, replicas = client.sentinel_master(self.service), client.sentinel_slaves(self.service)
            return bool(
                primary.port == int(master["port"])
                and "master" == master["flags"]
                and len(self.sentinels) - 1 == int(master["num-other-sentinels"])
                and ["slave"] == [state["flags"] for state in replicas]
                and ["ok"] == [state["master-link-status"] for state in replicas]
            )
        return False

    def _primary_port(self, sentinel: RedisNode) -> int | None:
        if sentinel.running:
            with contextlib.suppress(redis.RedisError, OSError):
                address = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
                return int(address[1]) if address else None
        return None

    def close(self) -> None:
        """End all."""
        for node in [*self.sentinels, *self.servers]:
            node.kill()


@contextlib.contextmanager
def running_sentinel(program: str, *, down_after: float = 1.0) -> Iterator[SentinelGroup]:
    """A started group, ended on exit. A primary is taken for dead when it is silent for `down_after` seconds."""
    with tempfile.TemporaryDirectory(prefix="seawall-sentinel-") as folder:
        group = SentinelGroup(program, Path(folder), down_after=down_after)
        try:
            group.start()
            yield group
        finally:
            group.close()
