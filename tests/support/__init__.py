"""Real parts that tests start: servers, processes, applications."""
