"""Arithmetic only: time is an argument, nothing here reads a clock, takes a lock or does I/O."""
