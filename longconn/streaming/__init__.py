"""Channels for clients that speak plain HTTP: event streams (SSE) that stay parked, and long polls."""
