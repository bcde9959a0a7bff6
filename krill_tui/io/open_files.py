"""How many files and connections this process may have open."""

from __future__ import annotations

import sys

UNKNOWN = sys.maxsize
"""The answer where the system sets no limit, or none that can be read."""


def room_for_files(wanted: int) -> int:
    """How many files may be open at once, after raising the soft limit to `wanted` as far as the hard limit lets us."""
    try:
        import resource
    except ImportError:  # Windows: its limit is far away
        return UNKNOWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return UNKNOWN
    if soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        except (ValueError, OSError):
            return soft
        return raised
    return soft
