"""A cluster of three primaries with a replica each, on loopback ports of its own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.support.redis_node import RedisNode, free_port, start_together, wait_until

__all__ = ["ClusterGroup", "running_cluster"]

_SLOTS = 16_384


class ClusterGroup:
    """The nodes of one cluster. `kill_primary`, `wait_for_new_primary` and `restore` are a failover and its end."""

    def __init__(self, program: str, folder: Path, *, primaries: int = 3, node_timeout: float = 1.5) -> None:
        self.program = program
        self.nodes = [RedisNode(program, folder) for _ in range(2 * primaries)]
        self._count = primaries
        self._node_timeout = round(node_timeout * 1_000)
        self._bus_ports = {node.port: free_port() for node in self.nodes}

    @property
    def uri(self) -> str:
        """The address of the cluster for `open_storage`: three of its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[: self._count])

    def start(self) -> None:
        """Start all, and return when every slot is served and every replica has copied its primary."""
        for node in self.nodes:
            self._start(node)
        start_together(self.nodes)
        primaries, replicas = self.nodes[: self._count], self.nodes[self._count :]
        first, *others = self.nodes
        for index, node in enumerate(primaries):
            low, high = _SLOTS * index // self._count, _SLOTS * (index + 1) // self._count - 1
            node.command("CLUSTER ADDSLOTSRANGE", low, high)
            node.command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        for node in others:
            node.command("CLUSTER MEET", "127.0.0.1", first.port, self._bus_ports[first.port])
        wait_until(lambda: all(self._knows_all(node) for node in self.nodes), "all nodes have met")
        for replica, primary in zip(replicas, primaries, strict=True):
            replica.command("CLUSTER REPLICATE", self.name(primary))
        self._wait_until_ready()

    def _start(self, node: RedisNode) -> None:
        node.start_server(
            [
                ("--cluster-enabled", "yes"),
                ("--cluster-port", str(self._bus_ports[node.port])),
                ("--cluster-node-timeout", str(self._node_timeout)),
                ("--cluster-replica-validity-factor", "0"),
            ]
        )

    def _knows_all(self, node: RedisNode) -> bool:
        return len(self.nodes) == len(self._table(node)) and not any(
            "handshake" in line["flags"] for line in self._table(node).values()
        )

    def _table(self, node: RedisNode) -> dict[str, Any]:
        with contextlib.suppress(redis.RedisError, OSError):
            return dict(node.client.cluster("NODES"))
        return {}

    def name(self, node: RedisNode) -> str:
        """The name by which the cluster knows a node."""
        return str(node.client.cluster("MYID"))

    def owners(self, witness: RedisNode | None = None) -> list[tuple[int, int, int]]:
        """Who serves which slots, as `witness` (or the first node that runs) says it: first slot, last slot, port."""
        if witness is None:
            witness = next(node for node in self.nodes if node.running)
        return sorted((low, high, int(primary[1])) for low, high, primary, *_ in witness.client.cluster("SLOTS"))

    @property
    def primaries(self) -> list[RedisNode]:
        """The nodes that serve slots, in the order of their first slots."""
        ports = list(dict.fromkeys(port for _, _, port in self.owners()))
        return [next(node for node in self.nodes if node.port == port) for port in ports]

    def owner(self, slot: int) -> RedisNode:
        """The node that serves `slot`."""
        port = next(port for low, high, port in self.owners() if low <= slot <= high)
        return next(node for node in self.nodes if node.port == port)

    def kill_primary(self, index: int = 0) -> RedisNode:
        """Kill a primary, and return it. What its replica has not received is lost."""
        primary = self.primaries[index]
        primary.kill()
        return primary

    def wait_for_new_primary(self, old: RedisNode, *, within: float = 30.0) -> None:
        """Return as soon as every node that runs serves, or knows who serves, the slots of `old`, and says all is well."""
        wait_until(
            lambda: all(
                self._well(node) and self._without(node, old) for node in self.nodes if node.running and node is not old
            ),
            "a replica has taken the place of the primary",
            within=within,
        )

    def _without(self, witness: RedisNode, old: RedisNode) -> bool:
        with contextlib.suppress(redis.RedisError, OSError):
            ports = {port for _, _, port in self.owners(witness)}
            return self._count == len(ports) and old.port not in ports
        return False

    def _well(self, node: RedisNode) -> bool:
        with contextlib.suppress(redis.RedisError, OSError):
            state = node.client.cluster("INFO")
            return bool("ok" == state["cluster_state"] and str(_SLOTS) == state["cluster_slots_assigned"])
        return False

    def restore(self) -> None:
        """Start again whatever was ended, and return when another failover could happen."""
        for node in self.nodes:
            if not node.running:
                self._start(node)
        start_together(self.nodes)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        wait_until(self._agreed, "every slot is served and every replica has copied its primary", within=60)

    def _agreed(self) -> bool:
        if not all(self._well(node) and self._knows_all(node) for node in self.nodes):
            return False
        views = [self.owners(node) for node in self.nodes]
        primaries = self.primaries
        states = [node.replication() for node in self.nodes if node not in primaries]
        return (
            self._count == len(primaries)
            and all(view == views[0] for view in views)
            and all("slave" == state.get("role") and "up" == state.get("master_link_status") for state in states)
        )

    def begin_move(self, slot: int, target: RedisNode) -> RedisNode:
        """Set `slot` to be moving to `target`: new keys are asked for there (ASK). Returns who serves it still."""
        source = self.owner(slot)
        target.command("CLUSTER SETSLOT", slot, "IMPORTING", self.name(source))
        source.command("CLUSTER SETSLOT", slot, "MIGRATING", self.name(target))
        return source

    def move_keys(self, slot: int, source: RedisNode, target: RedisNode, keys: Sequence[str] | None = None) -> None:
        """Move `keys`, or all that `slot` has."""
        names = source.client.cluster("GETKEYSINSLOT", slot, 1_000) if keys is None else keys
        if names:
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *names)

    def end_move(self, slot: int, source: RedisNode, target: RedisNode) -> None:
        """Give `slot` to `target`, and return when all nodes know it."""
        self.move_keys(slot, source, target)
        for node in [
            target,
            source,
            *(node for node in self.nodes if node not in (source, target) and self._serves(node)),
        ]:
            node.command("CLUSTER SETSLOT", slot, "NODE", self.name(target))
        wait_until(
            lambda: all(
                any(low <= slot <= high and port == target.port for low, high, port in self.owners(node))
                for node in self.nodes
            ),
            f"all nodes know who serves slot {slot}",
        )

    def _serves(self, node: RedisNode) -> bool:
        return "master" == node.replication().get("role")

    def close(self) -> None:
        """End all."""
        for node in self.nodes:
            node.kill()


@contextlib.contextmanager
def running_cluster(program: str, *, node_timeout: float = 1.5) -> Iterator[ClusterGroup]:
    """A started cluster, ended on exit. A node is taken for dead when it is silent for `node_timeout` seconds."""
    with tempfile.TemporaryDirectory(prefix="seawall-cluster-") as folder:
        cluster = ClusterGroup(program, Path(folder), node_timeout=node_timeout)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()
