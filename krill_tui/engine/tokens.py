"""Token sequences of episodes that wait for their GRPO update, one file per step."""

from __future__ import annotations

import json
from pathlib import Path

from krill_tui.events.journal import truncate_torn_line
from krill_tui.trajectory import EpisodeTokens


class TokenStore:
    """`tokens/<name>.jsonl` in a run. Kept until a checkpoint holds the update they were used for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def append(self, name: str, episode: str, tokens: EpisodeTokens) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(name)
        with path.open("ab", buffering=0) as file:
            file.write(json.dumps([episode, tokens.model_dump(mode="json")]).encode() + b"\n")

    def read(self, name: str) -> dict[str, EpisodeTokens]:
        """Episode id -> tokens; of an episode written twice the later one."""
        path = self._path(name)
        if not path.exists():
            return {}
        truncate_torn_line(path)
        found = {}
        for line in path.read_bytes().splitlines():
            episode, tokens = json.loads(line)
            found[episode] = EpisodeTokens.model_validate(tokens)
        return found

    def drop(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.jsonl"
