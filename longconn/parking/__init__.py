"""Connections that wait: at the price of a descriptor and one small object each."""
