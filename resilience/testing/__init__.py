"""What tests of programs that use this library need.

`FakeClock` stands still until told to move: give it to limiters and storages (`clock=`) and no test sleeps. `smallest_burst`
says what a list of admissions amounts to. `RecordingListener` remembers what a circuit breaker told it; a limiter's
`on_breach` needs no such thing, the method `append` of a list will do.

`LimitStorageConformance` is for those who write a storage of their own (`resilience.ports.LimitStorage`): a class of tests
with the pure core as the oracle, to be derived from. It needs no test framework; pytest and unittest both find its methods.
`StateStorageConformance` is the same for storages of state (`resilience.ports.StateStorage`), where circuits are shared.
"""

from __future__ import annotations

from resilience.testing.conformance import LimitStorageConformance
from resilience.testing.fakes import FakeClock, RecordingListener
from resilience.testing.state_conformance import StateStorageConformance
from resilience.testing.windows import smallest_burst

__all__ = ["FakeClock", "LimitStorageConformance", "RecordingListener", "StateStorageConformance", "smallest_burst"]
