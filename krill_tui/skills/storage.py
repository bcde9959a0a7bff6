"""A TinyDB storage whose file is always whole: written beside, synced, then renamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinydb.middlewares import CachingMiddleware
from tinydb.storages import Storage

from krill_tui.errors import DataError
from krill_tui.io.files import read_json, write_atomically


class AtomicStorage(Storage):
    """The whole database as one JSON file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def read(self) -> dict[str, dict[str, Any]] | None:
        if not self._path.exists() or self._path.stat().st_size == 0:
            return None
        data = read_json(self._path)
        tables = isinstance(data, dict) and all(isinstance(table, dict) for table in data.values())
        # Some other program's tables must not be taken for an empty bank and written over.
        if not tables or (data and "meta" not in data):
            raise DataError(f"{self._path}: is not a skill bank of Krill", hint="import it first")
        return data

    def write(self, data: dict[str, dict[str, Any]]) -> None:
        write_atomically(self._path, bank_text(data))


def bank_text(data: dict[str, dict[str, Any]]) -> str:
    """The tables of a bank as its file holds them."""
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


class WriteOnFlush(CachingMiddleware):
    """Writes the file at `flush` only: one change of the bank is several table operations, never a part of them."""

    def write(self, data: dict[str, dict[str, Any]]) -> None:
        self.cache = data
        self._cache_modified_count += 1
