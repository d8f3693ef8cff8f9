"""Publish and subscribe: one message for all who listen to a channel, on every worker of a host."""
