"""Reading and replacing files, with errors that name the file."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from krill_tui.errors import DataError, StorageError, UsageError
from krill_tui.io.json_text import NotJson, loads
from krill_tui.io.secrets import masked, masked_json
from krill_tui.io.text import storable


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file of ours by `text` so that a crash or a power cut leaves the old or the new content.

    Known secrets are masked. The folder must be there: one that was deleted while Krill worked is not made again. For
    a target that a person chose there is `write_output`.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(masked_json(storable(text).encode()))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(path, error) from None


def remove_unfinished(folder: Path) -> list[str]:
    """Remove what killed writers left beside our files in `folder`; returns the names.

    That is text of `write_atomically`, and folders of checkpoints: half written ones, and replaced ones, which come
    back where the kill fell between the two renames.
    """
    removed: list[str] = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(".*")):
            if path.name.endswith(".old") and path.is_dir():
                whole = folder / path.name.removeprefix(".").removesuffix(".old")
                if not whole.exists():
                    os.replace(path, whole)
                    continue
            if path.name.endswith((".partial", ".old")) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.endswith((".tmp", ".copy")) and not path.is_dir():
                path.unlink(missing_ok=True)
            else:
                continue
            removed.append(path.name)
    return removed


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names in `folder`: a rename survives a power cut only after that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_output(path: Path) -> None:
    """Refuse a target that a person named before the work that fills it.

    Raises:
        UsageError: `path` is a folder, or lies where nothing can be written.
    """
    target = _target(path)
    try:
        if stat.S_ISDIR(target.stat().st_mode):
            raise UsageError(f"{path}: is a folder", hint="name a file in it")
        writable = os.access(target, os.W_OK)
    except FileNotFoundError:
        parent = target.parent
        while not parent.exists():
            parent = parent.parent
        writable = os.access(parent, os.W_OK | os.X_OK)
    except OSError as error:
        raise _unusable(path, error) from None
    if not writable:
        raise UsageError(f"{path}: cannot be written: permission denied")


def write_output(path: Path, text: str) -> None:
    """Write `text` to the target that a person named.

    Links are followed, devices and pipes written into, and an ordinary file is replaced as a whole, with the mode it
    had, or the umask's where it is new.

    Raises:
        UsageError: the target cannot be one.
        StorageError: it could not be written.
    """
    check_output(path)
    target = _target(path)
    found = target.stat() if target.exists() else None
    if found is None or stat.S_ISREG(found.st_mode):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(path, error) from None
        write_atomically(target, text, mode=stat.S_IMODE(found.st_mode) if found else 0o666 & ~_umask())
        return
    try:
        with target.open("w", encoding="utf-8") as file:
            file.write(masked(storable(text)))
    except OSError as error:
        raise StorageError(path, error) from None


def _unusable(path: Path, error: OSError | RuntimeError) -> UsageError:
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return UsageError(f"{path}: cannot be written: {reason.lower()}")


def _target(path: Path) -> Path:
    """Where a write to `path` ends up: links are followed, dangling ones too."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise _unusable(path, error) from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without the mark that some editors begin it with.

    Raises:
        DataError: the file is missing, cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None


def read_json(path: Path) -> Any:
    """The JSON value of a file.

    Raises:
        DataError: the file is missing, unreadable, or not JSON.
    """
    try:
        return loads(read_text(path))
    except NotJson as error:
        raise DataError(f"{path}: {error.told()}") from None
