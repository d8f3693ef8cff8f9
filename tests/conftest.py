"""What holds for every test."""

from tests.support.examples import load_profile

load_profile()
