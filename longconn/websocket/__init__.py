"""WebSockets that park: between two messages a connection is one small object, no greenlet and no buffer."""
