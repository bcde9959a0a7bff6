"""A TinyDB storage whose file is always whole: written beside, synced, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tinydb.middlewares import CachingMiddleware
from tinydb.storages import Storage

from krill_tui.errors import DataError


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a crash at any moment leaves the old or the new content.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_json(path: Path) -> Any:
    """The JSON value of a file.

    Raises:
        DataError: the file is missing, unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except (RecursionError, ValueError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{path}: holds JSON that cannot be read: {problem}") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


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
        write_atomically(self._path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


class WriteOnFlush(CachingMiddleware):
    """Writes the file at `flush` only: one change of the bank is several table operations, never a part of them."""

    def write(self, data: dict[str, dict[str, Any]]) -> None:
        self.cache = data
        self._cache_modified_count += 1
