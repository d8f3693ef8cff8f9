"""A Flask application of WebSocket classes, one worker or many, with and without parking.

/rooms/<room>?user=    says what is said to all in the room; hears what was missed with ?since=; "!fail" raises, "!sleep"
                       blocks, "!who" asks who one is
/private?token=        lets in who has the token "good", for ?seconds=
POST /rooms/<room>     publishes the body from a view; ?from=thread from a thread
POST /kick/<user>      sends a user away
/connections           JSON: the users that are connected, to all workers
/ends                  JSON: what `close` was told
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from flask import Flask, Response, abort, has_request_context, jsonify, request

from longconn import Identity, WebSockets
from longconn.channels.ports import Message

app = Flask(__name__)
ws = WebSockets(app)
ends: list[Any] = []


@ws.endpoint("/rooms/<room>")
class Room:
    """Says what is said to all in the room."""

    def authorize(self, request: Any) -> Any:
        """Lets in everybody, by name."""
        return request.args.get("user")

    def open(self, conn: Any) -> None:
        """Joins the room, from where its client was."""
        history = conn.join(conn.arguments["room"], since=request.args.get("since"))
        conn.send({"here": str(history.position), "complete": history.complete})

    def message(self, conn: Any, data: str | bytes) -> None:
        """Publishes what is said."""
        if data == "!fail":
            raise RuntimeError("as it was told to")
        if data == "!sleep":
            time.sleep(0.5)
            conn.send("slept")
        elif data == "!who":
            conn.send([conn.user, has_request_context(), conn.channels])
        elif isinstance(data, bytes):
            conn.send(data)
        else:
            ws.channels.publish(conn.arguments["room"], f"{conn.user}: {data}")

    def encode(self, message: Message) -> dict[str, Any]:
        """How the room looks to its clients."""
        return {"said": message.data, "at": str(message.position)}

    def close(self, conn: Any, code: int, reason: str) -> None:
        """Notes how it ended."""
        ends.append([conn.user, code, reason])


@ws.endpoint("/private")
class Private:
    """For those who have a token."""

    def authorize(self, request: Any) -> Any:
        """Lets in who has the token, for some time."""
        token = request.args.get("token")
        if token is None:
            abort(401)
        if token != "good":
            return False
        return Identity("ann", token="t1", expires_at=time.time() + float(request.args.get("seconds", 60)))

    def open(self, conn: Any) -> None:
        """Says hello."""
        conn.send(f"hello {conn.user}")


@app.post("/rooms/<room>")
def publish(room: str) -> str:
    """Publish the body."""
    text = request.get_data(as_text=True)
    if request.args.get("from") == "thread":
        thread = threading.Thread(target=ws.channels.publish, args=(room, text))
        thread.start()
        thread.join()
    else:
        ws.channels.publish(room, text)
    return str(os.getpid())


@app.post("/kick/<user>")
def kick(user: str) -> str:
    """Send a user away."""
    return str(int(ws.kick(user=user, code=4003, reason="go")))


@app.get("/connections")
def connections() -> Response:
    """Who is connected."""
    return jsonify(sorted(str(each["user"]) for each in ws.connections()))


@app.get("/ends")
def list_ends() -> Response:
    """How connections have ended in this worker."""
    return jsonify(ends)
