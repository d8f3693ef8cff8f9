"""Where buckets live: this process, this host, or a Redis-compatible server."""
