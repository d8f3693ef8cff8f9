"""`python -m longconn states` prints the state machine of a connection, `python -m longconn settings` every setting."""

from __future__ import annotations

import sys

from longconn.core.states import table
from longconn.settings import Settings

_TEXTS = {"states": table, "settings": Settings.describe}


def main(arguments: list[str]) -> int:
    """Print what was asked for. 2 when it is not known."""
    if len(arguments) != 1 or arguments[0] not in _TEXTS:
        sys.stderr.write(f"usage: python -m longconn {'|'.join(_TEXTS)}\n")
        return 2
    sys.stdout.write(_TEXTS[arguments[0]]().rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
