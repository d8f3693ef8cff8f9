"""An application with event streams and long polls.

/events/<names>        an event stream of the channels whose names are separated by commas; ?heartbeat= ?retry= ?queue_bytes=
                       ?overflow= ?user= ?earliest= ?token= ?seconds= (until the credentials end)
/poll/<name>           a long poll; ?most= ?user=
/publish/<name>        publishes the body of a POST; ?event= ?key= ?times=; answers with the position
/roster                the connections of all workers; ?user= and so on
/counts                how many there are
/kick                  POST: sends away those that fit; ?user= ?token= and so on
/ended                 why streams of this worker have ended
/figures               this worker's row of the scoreboard
/pid                   the worker's process id

Nobody but "ann" may hear "secret".
"""

from __future__ import annotations

import os
import time
from typing import Any

import flask
from flask import Flask, request

from longconn.adapters.event_streams import event_stream, long_poll
from longconn.channels.hub import default_channels
from longconn.channels.ports import HistoryLimits
from longconn.identity import Identity
from longconn.roster import Roster

__all__ = ["application"]

application = Flask(__name__)
channels = application.extensions["longconn.channels"] = default_channels(
    __name__, history=HistoryLimits(count=1000, size=16 << 20)
)
roster = Roster(channels)
roster.answer()
ended: list[str] = []


@channels.authorizes("secret")
def _secret(user: Any, channel: str, action: str) -> bool:
    return bool(user == "ann")


def _note(connection: Any, reason: str) -> None:
    ended.append(f"{connection.user} {reason}")


def _given(*names: str) -> dict[str, Any]:
    return {name: request.args[name] for name in names if name in request.args}


@application.get("/events/<names>")
def _events(names: str) -> flask.Response:
    options: dict[str, Any] = {name: float(value) for name, value in _given("heartbeat", "retry").items()}
    options.update({name: int(value) for name, value in _given("queue_bytes").items()})
    options.update(_given("overflow"))
    identity = None
    if "seconds" in request.args or "token" in request.args:
        expires = time.time() + float(request.args["seconds"]) if "seconds" in request.args else None
        identity = Identity(request.args.get("user", "ann"), request.args.get("token", ""), expires)
    answer = event_stream(
        *names.split(","),
        since="earliest" if "earliest" in request.args else None,
        user=request.args.get("user"),
        identity=identity,
        on_end=_note,
        **options,
    )
    answer.set_cookie("seen", "yes")
    return answer


@application.get("/poll/<name>")
def _poll(name: str) -> flask.Response:
    return long_poll(name, most=int(request.args.get("most", 100)), user=request.args.get("user"))


@application.post("/publish/<name>")
def _publish(name: str) -> str:
    body = request.get_data(as_text=True)
    position = ""
    for number in range(int(request.args.get("times", 1))):
        position = str(channels.publish(name, body.replace("{number}", str(number)), **_given("event", "key")))
    return position


@application.get("/roster")
def _roster() -> dict[str, Any]:
    found = roster.connections(**_given("id", "user", "address", "channel", "kind", "path"))
    return {"connections": found, "total": found.total, "silent": found.silent}


@application.get("/counts")
def _counts() -> dict[str, Any]:
    return dict(roster.counts())


@application.post("/kick")
def _kick() -> dict[str, Any]:
    return {"kicked": roster.kick(**_given("id", "user", "address", "channel", "token"), reason="enough")}


@application.get("/ended")
def _ended() -> list[str]:
    return ended


@application.get("/figures")
def _figures() -> dict[str, int]:
    from longconn import scoreboard
    from longconn.worker import BOARD

    (row,) = (row for row in BOARD.rows() if row.pid == os.getpid())
    return dict(zip(scoreboard.FIELDS, row.values, strict=False))


@application.get("/pid")
def _pid() -> str:
    return str(os.getpid())
