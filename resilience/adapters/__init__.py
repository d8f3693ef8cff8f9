"""The edges: Flask, HTTP fields, the admin endpoint, the sockets between workers."""
