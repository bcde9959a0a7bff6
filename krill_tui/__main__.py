"""`krill`, and `python -m krill_tui`."""

from __future__ import annotations

import os
import signal
import sys

_CANCELLED = 130


def main() -> None:
    """Run one command and exit with its code."""
    # Nothing is begun while modules are imported: a Ctrl-C then has nothing to save and nothing to say.
    at_first = signal.signal(signal.SIGINT, lambda *_: os._exit(_CANCELLED))
    from krill_tui.cli.app import run
    from krill_tui.io.streams import prepare_streams

    prepare_streams()
    signal.signal(signal.SIGINT, at_first)
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is to leave
    sys.exit(code)


if __name__ == "__main__":
    main()
