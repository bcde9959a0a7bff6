"""What every test shares: a world without the developer's keys, settings and runs."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any test imports a library that reads them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

_ARCHIVE = "games_valid_seen_and_train200.tar.xz"


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and settings below the test's own folder; no key, no games and no terminal of the developer."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("KRILL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "ALFWORLD_DATA",
        "COLUMNS",
        "LINES",
        "NO_COLOR",
        "FORCE_COLOR",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of recordings and games that lies beside the checkout, or where `KRILL_SHARED` says."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("KRILL_SHARED") or beside)
    if not path.is_dir():
        pytest.skip("no shared folder: set KRILL_SHARED")
    return path


@pytest.fixture(scope="session")
def games_dir(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder as `$ALFWORLD_DATA` names one, with the genuine `valid_seen` games, unpacked once."""
    archive = shared_dir / "alfworld" / _ARCHIVE
    if not archive.exists():
        pytest.skip(f"no {_ARCHIVE} in the shared folder")
    root = tmp_path_factory.mktemp("alfworld")
    with tarfile.open(archive) as tar:
        members = (m for m in tar if m.name.removeprefix("./").startswith("json_2.1.1/valid_seen/"))
        tar.extractall(root, members=members, filter="data")
    yield root


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of some thousand parameters with its tokenizer, as a Hugging Face folder."""
    from tests.tiny_model import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))
