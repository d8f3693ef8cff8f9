"""Which version of Seawall this is."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["installed_version"]

_DISTRIBUTION = "seawall"
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def installed_version(distribution: str = _DISTRIBUTION, project: Path = _PROJECT) -> str:
    """The version that is installed; of a checkout that is only on the path, the one in its pyproject.toml; else "unknown"."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        pass
    try:
        described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return "unknown"
    return str(described["version"]) if described.get("name") == distribution and "version" in described else "unknown"
