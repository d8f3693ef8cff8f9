"""The pictures of the documents are what the real bucket does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

IMAGES = Path(__file__).parents[3] / "docs" / "images"


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    """The programme that draws them."""
    specification = importlib.util.spec_from_file_location("draw", IMAGES / "draw.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_pictures_are_what_the_bucket_does(draw: ModuleType) -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in IMAGES.glob("*.svg")}
    assert kept == {name: picture() for name, picture in draw.PICTURES.items()}, "run: python docs/images/draw.py"


def test_the_pictures_are_well_formed(draw: ModuleType) -> None:
    for picture in draw.PICTURES.values():
        ElementTree.fromstring(picture())
