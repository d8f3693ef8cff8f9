"""The parking worker beside its peers: `python -m bench worker` runs it all, `python -m bench worker --help` says how."""
