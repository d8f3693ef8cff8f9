"""An application whose views have children that live on for a while and let greenlets run, as those of multiprocessing may.

/events     an event stream of the channel "news", with a heartbeat each second
/fork       POST: has a child for three seconds; answers with its process id
/publish    POST: publishes the body
"""

from __future__ import annotations

import os
import time

import flask
from flask import Flask, request

from longconn.adapters import channels_of
from longconn.adapters.event_streams import event_stream

__all__ = ["application"]

application = Flask(__name__)


@application.get("/events")
def _events() -> flask.Response:
    return event_stream("news", heartbeat=1)


@application.post("/fork")
def _fork() -> str:
    child = os.fork()
    if child == 0:
        time.sleep(3)
        os._exit(0)
    return str(child)


@application.post("/publish")
def _publish() -> str:
    return str(channels_of(application).publish("news", request.get_data(as_text=True)))
