"""A client that holds tens of thousands of WebSocket, SSE or keep-alive connections, and checks what comes over them.

    python -m longconn.load ws ws://127.0.0.1:8000/ws/news --connections 20000 --seconds 60 --check sequence

It opens them at a pace, from as many processes and source addresses as they need, answers pings, comes back with jitter
when it is closed, counts what is lost, doubled or out of order, times each message on its way, and ends by itself. From
Python:

    with Load(Plan(kind="ws", url="ws://127.0.0.1:8000/ws/news", connections=10_000)) as load:
        assert load.until(lambda tally: tally.open == 10_000, within=60)
        report = load.finish()
"""

from longconn.load.conductor import Load, Report
from longconn.load.plan import Plan, PlanError
from longconn.load.tally import Tally

__all__ = ["Load", "Plan", "PlanError", "Report", "Tally"]
