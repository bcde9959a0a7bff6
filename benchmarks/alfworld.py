"""Speed of Krill's household engine on genuine games, and of the genuine engine on the same commands.

    python benchmarks/alfworld.py --games $ALFWORLD_DATA --split valid_seen [--genuine 4] [--json]

Ours plays every game of the split with random admissible commands, first with nothing cached (`cold`: each
game was just loaded), then once more (`warm`: what a group of episodes of one game sees). Where the
package `alfworld` is installed, `--genuine N` plays the same commands of N of the games on it, compares
every observation, and gives the ratio of the cold rates. Times are of the processor, one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import time
from pathlib import Path

from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.problem import load_game
from krill_tui.envs.alfworld.source import GamesSource

Play = tuple[Path, list[str], list[str]]
"""(game file, commands, the first observation and what was said to each command)"""


def play_ours(paths: list[Path], steps: int, seed: int) -> tuple[dict[str, float], list[Play]]:
    """Rates of our engine, and the plays for the genuine one to repeat."""
    clock = time.process_time
    start = clock()
    games = [load_game(path) for path in paths]
    loaded = clock()
    episodes = [AlfworldGame(game) for game in games]
    firsts = [episode.reset() for episode in episodes]
    reset = clock()
    rng = random.Random(seed)
    plays: list[Play] = []
    for path, episode, first in zip(paths, episodes, firsts, strict=True):
        commands, said, result = [], [first.observation], first
        while len(commands) < steps and not result.done:
            commands.append(rng.choice(result.admissible))
            result = episode.step(commands[-1])
            said.append(result.observation)
        plays.append((path, commands, said))
    cold = clock()
    for episode, (_, commands, _) in zip(episodes, plays, strict=True):
        episode.reset()
        for command in commands:
            episode.step(command)
    warm = clock()
    count = sum(len(commands) for _, commands, _ in plays)
    return {
        "games": len(paths),
        "steps": count,
        "load_ms": 1e3 * (loaded - start) / len(paths),
        "reset_ms": 1e3 * (reset - loaded) / len(paths),
        "cold_steps_per_s": count / (cold - reset),
        "warm_steps_per_s": count / (warm - cold),
    }, plays


def play_genuine(plays: list[Play]) -> dict[str, float]:
    """Rates of the genuine engine on the same commands, and how many observations are the same."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler

    clock = time.process_time
    in_reset = in_steps = 0.0
    same = count = 0
    for path, commands, said in plays:
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        start = clock()
        env = textworld.start(str(path), infos, wrappers=[AlfredDemangler()])
        state = env.reset()
        in_reset += clock() - start
        same += state.feedback == said[0]
        for command, expected in zip(commands, said[1:], strict=True):
            start = clock()
            state, _, _ = env.step(command)
            in_steps += clock() - start
            same += state.feedback == expected
        count += len(commands)
        env.close()
    return {
        "games": len(plays),
        "steps": count,
        "load_and_reset_ms": 1e3 * in_reset / len(plays),
        "steps_per_s": count / in_steps,
        "same_observations": same,
        "observations": count + len(plays),
    }


def main() -> None:
    # A script's folder comes first on the path, where the name of this one would hide the package it measures.
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", type=Path, required=True, help="folder that holds json_2.1.1")
    parser.add_argument("--split", default="valid_seen")
    parser.add_argument("--steps", type=int, default=100, help="commands per game")
    parser.add_argument("--genuine", type=int, default=0, help="games to play on the genuine engine as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    source = GamesSource(options.games)
    tasks = source.tasks(options.split, source.splits().get(options.split, 0), seed=options.seed)
    ours, plays = play_ours([source.root / task.ref for task in tasks], options.steps, options.seed)
    report: dict[str, object] = {"krill": ours}
    if options.genuine and importlib.util.find_spec("alfworld"):
        genuine = play_genuine([(path, c[:30], s[:31]) for path, c, s in plays[: options.genuine]])
        report["genuine"] = genuine
        report["ratio_steps"] = ours["cold_steps_per_s"] / genuine["steps_per_s"]
        report["ratio_resets"] = genuine["load_and_reset_ms"] / (ours["load_ms"] + ours["reset_ms"])
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name}: {value:.0f}" if isinstance(value, float) else f"{name}:")
        for key, number in value.items() if isinstance(value, dict) else ():
            print(f"  {key}: {number:,.2f}" if isinstance(number, float) else f"  {key}: {number:,}")


if __name__ == "__main__":
    main()
