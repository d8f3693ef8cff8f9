"""Rate limits and circuit breakers for Flask, exact and concurrent under threads and greenlets.

The front door. Anything not listed in `__all__` may change without notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import resilience.adapters.limits_strategy  # noqa: F401  # "token-bucket" becomes a strategy of the limits package
from resilience.core.limiter import Decision, Limit, Quota
from resilience.decorators.breaker import CircuitBreaker, CircuitOpen, CircuitSnapshot
from resilience.decorators.combined import CombinedLimiter, all_of
from resilience.decorators.guard import circuit_breaker
from resilience.decorators.limiter import LimiterSnapshot, RateLimiter, rate_limit, shared_limit
from resilience.errors import RateLimited, Rejected, ResilienceError, StorageUnavailable
from resilience.scope import caller_key
from resilience.storage.address import open_storage
from resilience.storage.memory import MemoryStorage
from resilience.storage.state_address import open_state_storage

if TYPE_CHECKING:
    from resilience.adapters.admin import create_admin_blueprint
    from resilience.adapters.flask import Resilience

    __version__: str
    """What is installed; of a checkout that is not, what its pyproject.toml says."""

__all__ = [
    "CircuitBreaker",
    "CircuitOpen",
    "CircuitSnapshot",
    "CombinedLimiter",
    "Decision",
    "Limit",
    "LimiterSnapshot",
    "MemoryStorage",
    "Quota",
    "RateLimited",
    "RateLimiter",
    "Rejected",
    "Resilience",
    "ResilienceError",
    "StorageUnavailable",
    "__version__",
    "all_of",
    "caller_key",
    "circuit_breaker",
    "create_admin_blueprint",
    "open_state_storage",
    "open_storage",
    "rate_limit",
    "shared_limit",
]


def __getattr__(name: str) -> Any:
    # Flask is imported when it is asked for, so that plain programs start without it.
    if name == "Resilience":
        from resilience.adapters.flask import Resilience

        return Resilience
    if name == "create_admin_blueprint":
        from resilience.adapters.admin import create_admin_blueprint

        return create_admin_blueprint
    if name == "__version__":
        from resilience.version import installed_version

        return installed_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
