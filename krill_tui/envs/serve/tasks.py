"""Which game a caller means: by name in Krill's protocol, by number in AgentGym's."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

from krill_tui.envs.base import TaskSource
from krill_tui.envs.gym_numbers import split_and_position
from krill_tui.errors import UsageError
from krill_tui.trajectory import Task

MOST_TASKS = 100_000
"""Positions of one order that can be asked for."""
_MOST_ORDERS = 64
_FIRST_LENGTH = 64
_HELD_BACK = 5
"""One in so many train games makes the evolve split of a source that has none."""
_STAND_INS = {"valid": "valid_seen", "test": "valid_unseen"}
"""Splits of the ALFWorld dataset, under the names procedural worlds use."""
_NAME = re.compile(r"(\w{1,40})/(\d{1,9})/(\d{1,9})", re.ASCII)


class TaskDirectory:
    """Finds the tasks of one source. A source without an evolve split lends the tail of its train games."""

    def __init__(self, source: TaskSource) -> None:
        self._source = source
        self._splits = source.splits()
        self._orders: OrderedDict[tuple[str, int], Sequence[Task]] = OrderedDict()
        self._handed_out = 0

    def named(self, name: str) -> Task:
        """The task `<split>/<seed>/<position>`. Positions of train and evolve go round and round.

        Raises:
            UsageError: no such name, split or position.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise UsageError(f"'{name[:80]}' is no task", hint="<split>/<seed>/<position>, e.g. train/0/7")
        return self._at(match[1], int(match[2]), int(match[3]))

    def numbered(self, number: int) -> Task:
        """The task with this number of AgentGym's.

        Raises:
            UsageError: the number is out of range.
        """
        place = split_and_position(self._source.env, number)
        if place is None:
            raise UsageError(f"there is no game {number}")
        return self._at(place[0], 0, place[1])

    def following(self) -> Task:
        """The next game of the train split (or of the first split there is), for callers that name none."""
        split = "train" if "train" in self._splits else next(iter(self._splits))
        position = self._handed_out
        self._handed_out += 1
        known = self._splits[split]
        return self._at(split, 0, position % (known if known > 0 else MOST_TASKS))

    def _at(self, split: str, seed: int, position: int) -> Task:
        if position >= MOST_TASKS:
            raise UsageError(f"position {position} is too far", hint=f"below {MOST_TASKS}, with another seed")
        order = self._order(split, seed, position + 1)
        if split in ("train", "evolve") and order:
            return order[position % len(order)]
        if position >= len(order):
            raise UsageError(f"split '{split}' holds {len(order)} games, none at position {position}")
        return order[position]

    def _order(self, split: str, seed: int, least: int) -> Sequence[Task]:
        """The first tasks of an order, at least `least` where there are so many; the orders in use are kept."""
        key = (split, seed)
        order = self._orders.get(key, ())
        if len(order) < least:
            order = self._draw(split, seed, min(MOST_TASKS, max(_FIRST_LENGTH, 2 * least)))
            self._orders[key] = order
        self._orders.move_to_end(key)
        if len(self._orders) > _MOST_ORDERS:
            self._orders.popitem(last=False)
        return order

    def _draw(self, split: str, seed: int, count: int) -> Sequence[Task]:
        if split in ("train", "evolve") and "evolve" not in self._splits and "train" in self._splits:
            return self._parted(split, seed)
        stand_in = _STAND_INS.get(split, split)
        return self._source.tasks(split if split in self._splits else stand_in, count, seed=seed)

    def _parted(self, split: str, seed: int) -> Sequence[Task]:
        """Train or evolve of a source that only has train; the parting does not depend on `seed`."""
        count = self._splits["train"]
        always = self._source.tasks("train", count, seed=0)
        held = {task.id for task in always[len(always) - len(always) // _HELD_BACK :]}
        tasks = self._source.tasks("train", count, seed=seed)
        return [task for task in tasks if (task.id in held) == (split == "evolve")]
