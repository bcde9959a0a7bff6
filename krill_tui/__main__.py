"""`krill`, and `python -m krill_tui`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run one command and exit with its code."""
    from krill_tui.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
