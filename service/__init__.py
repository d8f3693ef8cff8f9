"""A deployable Flask service on `resilience`: clone it to start from, or run it as it is."""
