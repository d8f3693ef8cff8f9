"""What holds for every test."""

from hypothesis import settings

# A shared machine may stand still for a second: examples have no time limit of their own, tests do.
settings.register_profile("seawall", deadline=None)
settings.load_profile("seawall")
