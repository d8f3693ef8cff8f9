"""The rate limiter beside its peers, everything in one run: `python -m bench ratelimit`.

Each part is a module with `run(plan) -> list[Section]`: a `Section` (of `bench.worker.report`) is a table with the targets
that it answers. `bench.ratelimit.rounds` times contenders in turn, here or in a process that gevent patched.
"""
