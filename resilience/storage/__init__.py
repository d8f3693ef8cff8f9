"""Where buckets live: this process, or a Redis-compatible server."""
