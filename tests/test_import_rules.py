"""The promises about who imports whom, kept by machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "peft", "accelerate", "openai", "safetensors")


def test_dependencies_run_one_way() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("module", ["krill_tui.cli.app", "krill_tui.tui.app", "krill_tui.headless"])
def test_starting_loads_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import {module}") & set(HEAVY)


def test_only_the_app_loads_textual() -> None:
    assert "textual" not in loaded_by(
        "import krill_tui.cli.app, krill_tui.headless, krill_tui.engine.session"
    )


def test_help_loads_neither_the_engine_nor_the_app() -> None:
    loaded = loaded_by("from krill_tui.cli.app import run; run(['--help'])")
    assert not loaded & {*HEAVY, "textual", "numpy", "tinydb", "pydantic"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after it ran `code`."""
    report = "import json, sys; print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))
