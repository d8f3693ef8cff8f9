"""What holds for every test."""

from tests.support.examples import load_profile
from tests.support.untraced import trace_children_by_greenlet

load_profile()
trace_children_by_greenlet()
