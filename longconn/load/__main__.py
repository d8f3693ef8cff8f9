"""`python -m longconn.load ws|sse|http URL`: see `longconn.load`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from longconn.load.conductor import run
from longconn.load.display import Progress, summary
from longconn.load.plan import KINDS, Plan, PlanError, addresses_in

__all__ = ["main", "plan_of"]

EPILOG = """\
examples:
  python -m longconn.load ws ws://127.0.0.1:8000/ws/news --connections 20000 --seconds 60 --check sequence
  python -m longconn.load ws ws://127.0.0.1:8000/echo --connections 64 --send-every 0
  python -m longconn.load sse http://127.0.0.1:8000/events/news --connections 5000 --check sequence
  python -m longconn.load http http://127.0.0.1:8000/ --connections 10000 --send-every 10

A message says its number as `longconn.load.marks` describes: by a channel's position in its id, by "n" in JSON, or by text that
begins with "17 1700000000.123456". The exit status is 0 when all connections were open to the end and no message was lost,
doubled or out of order, 1 when not, 2 when the load cannot be as asked for.
"""


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="python -m longconn.load",
        description="Hold many WebSocket, SSE or keep-alive connections, and check what comes over them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("kind", choices=KINDS, help="what to hold: WebSockets, event streams, or HTTP connections kept alive")
    add("url", help="ws://host:port/path or http://host:port/path; {number} in it is the connection's number")
    add("--connections", type=int, default=100, metavar="N", help="how many (100)")
    add("--processes", type=int, default=0, metavar="N", help="client processes (as few as can hold them)")
    add("--addresses", default="", metavar="A-B", help="source addresses, such as 127.0.0.1-127.0.0.8,10.0.0.5")
    add("--rate", type=float, default=2_000.0, metavar="N", help="connections opened a second (2000)")
    add("--seconds", type=float, default=10.0, metavar="S", help="how long to hold them all (10)")
    add(
        "--send-every", type=float, metavar="S", help="each sends a message, or asks, every S seconds; 0: at once again"
    )
    add("--size", type=int, default=64, metavar="BYTES", help="of a message that is sent (64)")
    add("--check", choices=["sequence"], help="count what is lost, doubled or out of order")
    add("--hello", default="", metavar="TEXT", help="first message of each; {number} is the connection's number")
    add("--hello-again", default="", metavar="TEXT", help="the same when it comes back; {since} is what it saw last")
    add("--resume", default="", metavar="NAME", help="query parameter that says what it saw last, when it comes back")
    add("--reconnect", type=float, default=1.0, metavar="S", help="come back after up to S seconds, 0: never (1)")
    add("--patience", type=float, default=30.0, metavar="S", help="seconds that one opening may take (30)")
    add("--field", action="append", default=[], metavar="'NAME: VALUE'", help="one more line in the request's head")
    add("--subprotocol", action="append", default=[], metavar="NAME", help="a subprotocol to offer")
    add("--json", action="store_true", help="print the report as JSON")
    return made


def plan_of(arguments: Sequence[str]) -> tuple[Plan, bool]:
    """The plan that a command line asks for, and whether the report is to be JSON. Raises `PlanError`, and `SystemExit` as
    argparse does."""
    given = parser().parse_args(arguments)
    plan = Plan(
        kind=given.kind,
        url=given.url,
        connections=given.connections,
        processes=given.processes,
        addresses=addresses_in(given.addresses) if given.addresses else (),
        rate=given.rate,
        seconds=given.seconds,
        send_every=given.send_every,
        size=given.size,
        check=given.check == "sequence",
        hello=given.hello,
        hello_again=given.hello_again,
        resume=given.resume,
        reconnect=given.reconnect,
        patience=given.patience,
        fields=tuple(given.field),
        subprotocols=tuple(given.subprotocol),
    )
    return plan, given.json


def main(arguments: Sequence[str]) -> int:
    """Run the load; the exit status."""
    try:
        plan, as_json = plan_of(arguments)
        report = run(plan, Progress(plan, sys.stderr).show)
    except PlanError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write((json.dumps(report.as_json(), indent=2) if as_json else summary(report)) + "\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
