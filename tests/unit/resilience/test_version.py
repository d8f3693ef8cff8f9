"""The version is that of what is installed, or of the checkout."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import resilience
from resilience.version import installed_version

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_the_front_door_tells_the_version() -> None:
    assert resilience.__version__ == installed_version()
    assert resilience.__version__[0].isdecimal()


def test_what_is_installed_tells_its_own_version() -> None:
    assert version("pybreaker") == installed_version("pybreaker")


def test_a_checkout_tells_the_version_of_its_project(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "not-installed"\nversion = "1.2.3"\n')
    assert "1.2.3" == installed_version("not-installed", project)
    assert tomllib.loads(PROJECT.read_text())["project"]["version"] == installed_version("seawall", PROJECT)


@pytest.mark.parametrize(
    "text",
    ["", "[project]\nname = 'other'\nversion = '1'\n", "[project]\nname = 'not-installed'\n", "no = toml = at all"],
)
def test_without_either_the_version_is_unknown(tmp_path: Path, text: str) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(text)
    assert "unknown" == installed_version("not-installed", project)
    assert "unknown" == installed_version("not-installed", tmp_path / "nowhere.toml")
