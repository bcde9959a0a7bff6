"""A process that plays genuine games with the package `alfworld`, many episodes at once.

Run as `python -m krill_tui.envs.alfworld.genuine_worker`. Requests come on standard input, one JSON object a
line: `{"id", "op": "reset", "episode", "game"}`, `{"id", "op": "step", "episode", "action"}`,
`{"id", "op": "close", "episode"}`. Each is answered with one line that repeats its id and holds the result,
or `error`. It ends when its input ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

Reply = dict[str, Any]


class Episodes:
    """The games being played, by the number that the asking side gave them."""

    def __init__(self) -> None:
        self._games: dict[int, Any] = {}

    def answer(self, request: dict[str, Any]) -> Reply:
        """Do what is asked; what the package raises becomes the episode's error."""
        number = request["episode"]
        try:
            match request["op"]:
                case "reset":
                    self._close(number)
                    self._games[number] = _start_game(request["game"])
                    return _result(self._games[number].reset())
                case "step":
                    return _result(self._games[number].step(request["action"])[0])
                case _:
                    self._close(number)
                    return {}
        except Exception as error:  # the boundary to a package that raises anything at all
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}

    def _close(self, number: int) -> None:
        game = self._games.pop(number, None)
        if game is not None:
            game.close()


def _start_game(path: str) -> Any:
    import textworld  # pyright: ignore[reportMissingImports]
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler  # pyright: ignore[reportMissingImports]

    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    return textworld.start(path, infos, wrappers=[AlfredDemangler()])


def _result(state: Any) -> Reply:
    won = bool(state["won"])
    return {
        "observation": state["feedback"],
        "admissible": list(state["admissible_commands"]),
        "reward": float(won),
        "done": won,
        "won": won,
    }


def main() -> None:
    # The package prints: replies keep standard output to themselves.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    episodes = Episodes()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        replies.write(json.dumps({"id": request["id"], **episodes.answer(request)}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
