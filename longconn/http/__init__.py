"""HTTP/1 for parked connections: heads read at C speed, with gunicorn's own parser as the judge of anything unusual."""
