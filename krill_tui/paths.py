"""Where things live: runs, the user's settings, the files shipped with Krill."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def runs_dir() -> Path:
    """`$KRILL_RUNS`, else `runs/` below the working directory."""
    return Path(os.path.expanduser(os.environ.get("KRILL_RUNS") or "runs"))


def user_cache_dir() -> Path:
    """What can be computed again, e.g. which game files of a data folder are whole."""
    return platformdirs.user_cache_path("krill")


def user_config_file() -> Path:
    """The user's own settings of the app (theme, keys), not of a run."""
    return platformdirs.user_config_path("krill") / "settings.json"


def fsdp_config() -> Path:
    """The accelerate config that shards the policy's weights (`policy.accelerate_config=fsdp`)."""
    return Path(__file__).parent / "training" / "fsdp.yaml"


def asset(name: str) -> Path:
    """A file or folder of `assets/`: inside an installed package, else beside it in the checkout."""
    packaged = Path(__file__).parent / "assets" / name
    return packaged if packaged.exists() else Path(__file__).parent.parent / "assets" / name
