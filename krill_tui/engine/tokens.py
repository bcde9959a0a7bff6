"""Token sequences of episodes that wait for their GRPO update, one file per step."""

from __future__ import annotations

import json
from pathlib import Path

from krill_tui.errors import StorageError
from krill_tui.io.jsonl import JsonLines, read_lines
from krill_tui.trajectory import EpisodeTokens


class TokenStore:
    """`tokens/<name>.jsonl` in a run. Kept until a checkpoint holds the update they were used for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def append(self, name: str, episode: str, tokens: EpisodeTokens) -> None:
        """Write one line, whole.

        Raises:
            StorageError: it could not be written.
        """
        try:
            self._directory.mkdir(exist_ok=True, mode=0o700)  # not its parents: a deleted run stays deleted
        except OSError as error:
            raise StorageError(self._directory, error) from None
        file = JsonLines(self._path(name), checked=True)
        try:
            file.append(json.dumps({"episode": episode, "tokens": tokens.model_dump(mode="json")}).encode())
        finally:
            file.close(sync=False)  # after a power cut they are sampled again

    def read(self, name: str) -> dict[str, EpisodeTokens]:
        """Episode id -> tokens; of an episode written twice the later one.

        Raises:
            DataError: a whole line is not what `append` writes; names the file and the line.
        """
        return dict(read_lines(self._path(name), parse_tokens, "the tokens of an episode"))

    def names(self) -> list[str]:
        """What there are files of."""
        return sorted(path.stem for path in self._directory.glob("*.jsonl"))

    def drop(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.jsonl"


def parse_tokens(line: bytes) -> tuple[str, EpisodeTokens]:
    found = json.loads(line)
    # A pair in files of earlier versions.
    episode, tokens = (found["episode"], found["tokens"]) if isinstance(found, dict) else found
    return str(episode), EpisodeTokens.model_validate(tokens)
