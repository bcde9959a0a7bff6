"""Keys and values of many live episodes, kept between their turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from krill_tui.training.prefix import PrefixKv

_GROW = 256
"""Columns are added in multiples of this many tokens."""


class KvPool(Cache):
    """One row per episode, left-aligned: column t of a row holds token t of its sequence.

    `select` says which rows and columns the next forward pass writes; the pass then attends over those rows as they
    lie in memory, without a copy. Columns that were written for padding are overwritten before anything sees them.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[Tensor] = []
        """Per layer `[rows, heads, columns, head size]`."""
        self._values: list[Tensor] = []
        self._capacity = (0, 0)
        self._rows = slice(0, 0)
        self._columns = torch.empty(0, 0, dtype=torch.int64)
        self._span = 0

    def select(self, rows: slice, columns: Tensor, span: int) -> None:
        """Prepare a forward pass: `rows` are written at `columns` `[n, L]` and attended up to column `span`."""
        self._rows, self._columns, self._span = rows, columns, span
        self.reserve(rows.stop, span)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer with the new `[n, heads, L, head size]`; gives all it attends to."""
        if layer_idx == len(self._keys):
            rows, columns = self._capacity
            _, heads, _, size = key_states.shape
            self._keys.append(key_states.new_zeros(rows, heads, columns, size))
            self._values.append(
                value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[3])
            )
        index = torch.arange(key_states.shape[0], device=key_states.device)[:, None]
        keys, values = self._keys[layer_idx][self._rows], self._values[layer_idx][self._rows]
        keys[index, :, self._columns] = key_states.transpose(1, 2)
        values[index, :, self._columns] = value_states.transpose(1, 2)
        return keys[:, :, : self._span], values[:, :, : self._span]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._span

    def copy_row(self, source: int, target: int, columns: int) -> None:
        """Copy the first `columns` of a row."""
        for store in (*self._keys, *self._values):
            store[target, :, :columns] = store[source, :, :columns]

    def prefix(self, row: int, columns: int) -> PrefixKv:
        """The first `columns` of a row as they lie in memory: for one pass, as rows move."""
        return PrefixKv(*([store[row, :, :columns] for store in side] for side in (self._keys, self._values)))

    def put_prefix(self, prefix: PrefixKv, row: int) -> None:
        """Begin a row with what was kept of another one."""
        self.reserve(row + 1, len(prefix))
        for stores, kept in ((self._keys, prefix.keys), (self._values, prefix.values)):
            for store, part in zip(stores, kept, strict=True):
                store[row, :, : len(prefix)] = part

    def swap_rows(self, a: int, b: int, columns: int) -> None:
        """Exchange the first `columns` of two rows."""
        for store in (*self._keys, *self._values):
            kept = store[a, :, :columns].clone()
            store[a, :, :columns] = store[b, :, :columns]
            store[b, :, :columns] = kept

    def permute(self, order: list[int], columns: int) -> None:
        """Make row i what row `order[i]` was, for the first `len(order)` rows."""
        for store in (*self._keys, *self._values):
            index = torch.tensor(order, device=store.device)
            store[: len(order), :, :columns] = store[index, :, :columns]

    def reserve(self, rows: int, columns: int = 0) -> None:
        """Make room, keeping what is there."""
        have_rows, have_columns = self._capacity
        if rows <= have_rows and columns <= have_columns:
            return
        if rows > have_rows:
            have_rows = max(rows, 2 * have_rows)
        if columns > have_columns:
            have_columns = -(-columns // _GROW) * _GROW
        capacity = (have_rows, have_columns)
        # Layer by layer, so that no more than one of them is there twice; a store that has grown is left as it is
        # when memory runs out half way and this is tried again.
        for stores in (self._keys, self._values):
            for layer, store in enumerate(stores):
                if (store.shape[0], store.shape[2]) != capacity:
                    stores[layer] = _grown(store, *capacity)
        self._capacity = capacity


def _grown(store: Tensor, rows: int, columns: int) -> Tensor:
    grown = store.new_zeros(rows, store.shape[1], columns, store.shape[3])
    rows, columns = min(rows, store.shape[0]), min(columns, store.shape[2])
    grown[:rows, :, :columns] = store[:rows, :, :columns]
    return grown
