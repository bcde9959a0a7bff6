"""Where shopping tasks come from: a shop drawn from a seed, or genuine product files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random

from krill_tui.envs.base import Environment, StepResult
from krill_tui.envs.webshop import pages, procedural
from krill_tui.envs.webshop.catalogue import CATEGORIES, Catalogue, load_products
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.envs.webshop.goals import (
    SPLITS,
    Goal,
    human_goals,
    in_genuine_order,
    split_of,
    synthetic_goals,
)
from krill_tui.envs.webshop.pages import ObservationMode
from krill_tui.envs.webshop.reward import can_be_met
from krill_tui.envs.webshop.session import Session
from krill_tui.errors import DataError, UsageError
from krill_tui.io.text import one_line
from krill_tui.trajectory import Task

_STRIDE = 1_000_000
"""Goals between the orders of two seeds."""
_LEAST_PRODUCTS = 200
"""A smaller procedural shop could leave a split without goals."""
_GENUINE_SPLITS = {"test": (0, 500), "valid": (500, 1500), "train": (1500, None)}
"""Goal numbers of the original's baseline."""


class WebshopEnvironment:
    """One visit to the shop, for the rollout. The reward is the genuine score, given at the purchase."""

    def __init__(self, task: Task, session: Session, mode: ObservationMode, genuine: bool) -> None:
        self.task = task.model_copy(
            update={"description": session.goal.instruction, "category": session.goal.category}
        )
        self._session = session
        self._mode: ObservationMode = mode
        self._genuine = genuine
        self._last: StepResult | None = None

    async def reset(self) -> StepResult:
        return self._result(0.0, False)

    async def step(self, action: str) -> StepResult:
        """Play one action; after the purchase it repeats the last result, unless `genuine`."""
        if self._last is not None and self._last.done and not self._genuine:
            return self._last
        return self._result(*self._session.step(action))

    async def close(self) -> None:
        """Nothing is held outside the object."""

    def accepts(self, action: str) -> bool:
        """Whether the shop would act on this text now, however it is written."""
        return self._session.accepts(action)

    def _result(self, reward: float, done: bool) -> StepResult:
        session = self._session
        info: dict[str, object] = {"free_form": () if session.done and not self._genuine else ("search[",)}
        if done and session.score:
            info["score"] = session.score.details()
        self._last = StepResult(
            session.observe(self._mode),
            pages.action_list(session.clickables, session.has_search_bar),
            reward=reward,
            done=done,
            won=done and reward == 1.0,
            info=info,
        )
        return self._last


class WebshopSource:
    """Tasks of one shop: procedural (`size` products), or the products of `data_dir`.

    `genuine` keeps the original where ours differs on purpose: its splits by goal number, goals that nothing can meet,
    its special queries, and shopping on after the purchase. `human_goals` asks for what people asked for, where the
    data folder says so, instead of one goal for each combination of options. `max_steps` is what the expert reckons
    with.

    Raises:
        UsageError: too few products, or no product file in `data_dir`.
        DataError: a product file is not what it should be.
    """

    env = "webshop"
    backend = "builtin"

    def __init__(
        self,
        seed: int = 0,
        size: int = 1000,
        data_dir: Path | None = None,
        observation_mode: ObservationMode = "text",
        genuine: bool = False,
        human_goals: bool = False,
        max_steps: int = 15,
    ) -> None:
        if data_dir is None and human_goals:
            raise UsageError(
                "a procedural shop has no goals of people",
                hint="env.human_goals needs genuine product files: --webshop-data DIR",
            )
        if data_dir is None and size < _LEAST_PRODUCTS:
            raise UsageError(f"a shop of {size} products is too small", hint=f"at least {_LEAST_PRODUCTS}")
        self.seed = seed
        self.size = size
        self.observation_mode: ObservationMode = observation_mode
        self.genuine = genuine
        self._max_steps = max_steps
        self._human_goals = human_goals
        self._left_out: list[str] = []
        products = load_products(data_dir, left_out=self._left_out) if data_dir else None
        self._files = Catalogue(products, seed=seed) if products is not None else None
        if self._files and not self._goals:
            whose = "what a person asked for" if human_goals else "an instruction"
            raise DataError(f"no product in these files comes with {whose}, so nothing can be asked for")

    @cached_property
    def _goals(self) -> list[Goal]:
        """The goals of the product files, by their number."""
        assert self._files is not None
        draw = human_goals if self._human_goals else synthetic_goals
        return in_genuine_order(draw(self._files, Random(f"webshop/bounds/{self.seed}")))

    @cached_property
    def _numbers(self) -> dict[str, list[int]]:
        """Split -> numbers of its goals, of the product files; without those that nothing can meet."""
        assert self._files is not None
        if self.genuine:
            everything = range(len(self._goals))
            return {split: list(everything[slice(*ends)]) for split, ends in _GENUINE_SPLITS.items()}
        numbers: dict[str, list[int]] = {split: [] for split in SPLITS}
        for number, goal in enumerate(self._goals):
            if can_be_met(self._files.by_asin[goal.asin], goal, self._files.prices[goal.asin]):
                numbers[split_of(goal)].append(number)
        return numbers

    def categories(self) -> tuple[str, ...]:
        """Those of its goals."""
        if self._files is None:
            return CATEGORIES
        return tuple(sorted({goal.category for goal in self._goals}))

    def splits(self) -> dict[str, int]:
        if self._files is None:
            return dict.fromkeys(SPLITS, -1)
        return {split: len(numbers) for split, numbers in self._numbers.items()}

    def notices(self) -> list[str]:
        """Which products and goals of product files are not played."""
        if self._files is None:
            return []
        told: list[str] = []
        products = self._files.products
        if bad := len(self._left_out):
            told.append(
                f"{bad} of {len(products) + bad} products cannot be read and are left out: "
                + "; ".join(map(one_line, self._left_out[:3]))
                + (f"; and {bad - 3} more" if bad > 3 else "")
            )
        asked = {goal.asin for goal in self._goals}
        if silent := len(products) - len(asked):
            told.append(
                f"{silent} of {len(products)} products come without an instruction: nobody asks for them"
            )
        if not self.genuine and (unmet := len(self._goals) - sum(map(len, self._numbers.values()))):
            told.append(
                f"{unmet} of {len(self._goals)} goals cannot be met and are left out; env.genuine=true keeps them"
            )
        return told

    def tasks(self, split: str, count: int, *, seed: int = 0) -> Sequence[Task]:
        if split not in self.splits():
            raise UsageError(f"there is no split '{split}'", hint=f"choose one of {', '.join(self.splits())}")
        if self._files is None:
            return [self._drawn_task(split, seed * _STRIDE + number) for number in range(count)]
        order = list(self._numbers[split])
        Random(f"webshop/{split}/{seed}").shuffle(order)
        return [self._filed_task(split, number) for number in order[:count]]

    def _drawn_task(self, split: str, index: int) -> Task:
        return Task(
            id=f"webshop/builtin/{split}/{self.seed}/{index}",
            env=self.env,
            split=split,
            category=procedural.category_of(index),
            ref=f"{self.seed}:{index}",
        )

    def _filed_task(self, split: str, number: int) -> Task:
        goal = self._goals[number]
        return Task(
            id=f"webshop/files/{split}/{self.seed}/{number}",
            env=self.env,
            split=split,
            description=goal.instruction,
            category=goal.category,
            ref=str(number),
        )

    def task(self, id: str) -> Task:
        """The goal of an id; a procedural shop is drawn from the seed in it."""
        catalogue_seed, split, number = self._parse(id)
        if self._files is not None:
            if number not in self._numbers.get(split, ()) or catalogue_seed != self.seed:
                raise DataError(f"the goal {one_line(id)} is not in this shop")
            return self._filed_task(split, number)
        return Task(
            id=id,
            env=self.env,
            split=split,
            category=procedural.category_of(number),
            ref=f"{catalogue_seed}:{number}",
        )

    def game_hash(self, task: Task) -> str:
        catalogue, goal, _ = self._goal_of(task)
        asked = (goal.asin, goal.instruction, goal.attributes, goal.price_upper, goal.category)
        options = sorted(goal.options.items()) if isinstance(goal.options, Mapping) else goal.options
        return hashlib.sha256(
            f"{_catalogue_hash(catalogue)} {asked!r} {options!r}".encode(errors="surrogatepass")
        ).hexdigest()

    def open(self, task: Task) -> Environment:
        catalogue, goal, number = self._goal_of(task)
        session = Session(
            catalogue, goal, name=str(number), genuine=self.genuine, rng=Random(f"webshop/play/{task.id}")
        )
        return WebshopEnvironment(task, session, self.observation_mode, self.genuine)

    def _goal_of(self, task: Task) -> tuple[Catalogue, Goal, int]:
        seed, split, index = self._parse(task.id)
        if self._files is None:
            catalogue = procedural.build_catalogue(seed, self.size)
            return catalogue, procedural.draw_goal(catalogue, seed, split, index), index
        return self._files, self._goals[index], index

    def _parse(self, id: str) -> tuple[int, str, int]:
        """(seed, split, number) of an id.

        Raises:
            UsageError: no goal of this shop has it.
        """
        kind = "builtin" if self._files is None else "files"
        match = re.fullmatch(rf"webshop/{kind}/(\w+)/(-?\d{{1,18}})/(\d{{1,18}})", id, re.ASCII)
        if match is None or match[1] not in self.splits():
            raise UsageError(
                f"'{one_line(id)}' is no task of this shop", hint=f"webshop/{kind}/<split>/<seed>/<index>"
            )
        index = int(match[3])
        if self._files is not None and index >= len(self._goals):
            raise UsageError(
                f"'{one_line(id)}' is no task of this shop", hint=f"it has {len(self._goals)} goals"
            )
        return int(match[2]), match[1], index

    def expert(self, hints: Mapping[str, Sequence[str]] | None = None) -> WebshopExpert:
        """A planner for one episode; hints name places of a household, and a shop has none."""
        return WebshopExpert(self._max_steps)

    def content_hash(self) -> str:
        digest = hashlib.sha256(f"{self.seed}/{self.genuine}/{self._human_goals}".encode())
        if self._files is not None:
            digest.update(self._files.content_hash().encode())
        else:
            digest.update(str(self.size).encode())
            package = Path(procedural.__file__).parent
            for name in ("procedural.py", "kinds.json"):
                digest.update((package / name).read_bytes())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=4)
def _catalogue_hash(catalogue: Catalogue) -> str:
    return catalogue.content_hash()
