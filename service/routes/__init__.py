"""Blueprints: parse the request, call one service method, render the answer."""
