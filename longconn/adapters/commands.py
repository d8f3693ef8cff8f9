"""`flask channels`: publish and look into channels from a terminal, while the workers run or before they do.

    flask --app app channels publish news "Doors open at nine"
    flask --app app channels publish prices '{"gold": 2412.5}' --json --event price --key gold
    flask --app app channels history news --since 18f2a3b4c5-17
    flask --app app channels list

The application that the command loads says which channels these are, so it reaches the same ones as its workers on this host.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from flask import current_app
from flask.cli import with_appcontext

from longconn.adapters import channels_of
from longconn.channels.hub import Channels
from longconn.channels.ports import Held, Message
from longconn.errors import LongConnError

__all__ = ["channels"]

_SHOWN: Final = 100
"""Characters of a message that a line shows."""


@click.group()
def channels() -> None:
    """Publish to channels, and look into them."""


@channels.command()
@click.argument("channel")
@click.argument("data")
@click.option("--event", default="", help="The kind of message: an event stream's event.")
@click.option(
    "--key", default="", help="A newer message of the same key replaces this one for clients that lag behind."
)
@click.option("--json", "as_json", is_flag=True, help="DATA is JSON: it is checked, and sent in its compact form.")
@with_appcontext
def publish(channel: str, data: str, event: str, key: str, *, as_json: bool) -> None:
    """Send DATA to all who listen to CHANNEL, on all workers of this host ("-" reads it from standard input), and print its
    position."""
    if data == "-":
        data = sys.stdin.read()
    content: Any = data
    if as_json:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise click.UsageError(f"DATA is no JSON: {error}") from None
        if isinstance(content, str):
            # A text by itself would go as it is, without the quotes that make it JSON.
            content = json.dumps(content, ensure_ascii=False)
    with _opened() as hub:
        click.echo(str(hub.publish(channel, content, event=event, key=key)))


@channels.command()
@click.argument("channel")
@click.option("--since", help="The position after which to begin, such as 18f2a3b4c5-17.")
@click.option("--most", type=click.IntRange(1, 100_000), help="How many messages at most, the newest.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with everything there is to each message.")
@with_appcontext
def history(channel: str, since: str | None, most: int | None, *, as_json: bool) -> None:
    """Show what CHANNEL still holds, oldest first."""
    with _opened() as hub:
        held = hub.history(channel, since, most)
    if as_json:
        document = {
            "channel": channel,
            "position": str(held.position),
            "complete": held.complete,
            "messages": [_document(message) for message in held.messages],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for message in held.messages:
        what = f"  [{_printable(message.event)}]" if message.event else ""
        click.echo(f"{message.position}  {_clock(message.at)}{what}  {_line(message.data)}")
    if not held.complete:
        click.echo(f"Messages after {since} are missing: the channel holds them no longer.", err=True)
    if not held.messages:
        click.echo(f"Nothing is held; the newest position is {held.position}.", err=True)


@channels.command("list")
@click.option(
    "--most", type=click.IntRange(1, 1_000_000), default=1_000, show_default=True, help="How many channels at most."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@with_appcontext
def list_channels(most: int, *, as_json: bool) -> None:
    """Show the channels of this host, and how much each holds."""
    with _opened() as hub:
        known = hub.broker.channels(most=most)
    if as_json:
        click.echo(json.dumps([_row(held) for held in known], indent=2, ensure_ascii=False))
        return
    if not known:
        click.echo("No message was published on any channel yet.", err=True)
        return
    width = max(len("CHANNEL"), *(len(held.channel) for held in known))
    click.echo(f"{'CHANNEL':<{width}}  {'HELD':>8}  {'BYTES':>12}  {'POSITION':<22}  NEWEST")
    for held in known:
        click.echo(
            f"{held.channel:<{width}}  {held.count:>8,}  {held.size:>12,}  {held.position!s:<22}  {_clock(held.at)}"
        )
    if len(known) == most:
        click.echo(f"There may be more than {most:,}: see --most.", err=True)


@contextmanager
def _opened() -> Iterator[Channels]:
    """The application's channels; what goes wrong with them is told in one sentence."""
    hub = channels_of(current_app)
    try:
        yield hub
    except LongConnError as error:  # of the settings, too
        raise click.ClickException(str(error)) from None


def _document(message: Message) -> dict[str, Any]:
    data = message.data if isinstance(message.data, str) else message.data.decode(errors="replace")
    return {
        "position": str(message.position),
        "at": message.at,
        "event": message.event,
        "key": message.key,
        "data": data,
        "binary": isinstance(message.data, bytes),
    }


def _row(held: Held) -> dict[str, Any]:
    return {
        "channel": held.channel,
        "position": str(held.position),
        "messages": held.count,
        "bytes": held.size,
        "at": held.at,
    }


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _line(data: str | bytes) -> str:
    if isinstance(data, bytes):
        return f"<{len(data):,} bytes>"
    shown = _printable(data[: _SHOWN + 1])
    return shown if len(data) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _printable(text: str) -> str:
    """Text of whomever, without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)
