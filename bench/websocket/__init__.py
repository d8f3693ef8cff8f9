"""WebSockets, server-sent events and channels under the parking worker, beside flask-sock and gorilla/websocket."""
