"""Checksums of the files of a folder, written last into its manifest, so that damage is noticed before use."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from krill_tui.io.files import sync_folder
from krill_tui.io.json_text import loads_leniently

MANIFEST = "manifest.json"


def file_sums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, the manifest aside, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): _sum(path) for path in files}


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest with the checksums of all files, and wait until the disk holds files, names and manifest."""
    files = file_sums(folder)
    for name in files:
        _sync(folder / name)
    text = json.dumps({**facts, "files": files}, indent=2)
    body = json.dumps({**facts, "files": files}, sort_keys=True).encode()
    text = text[:-2] + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    _sync(folder / MANIFEST)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)


def damage(folder: Path) -> list[str]:
    """What is wrong with a folder that has a manifest, a line for each file; empty where all is as it was written.

    A manifest of an earlier version holds no checksums: then nothing can be said.
    """
    path = folder / MANIFEST
    try:
        manifest = loads_leniently(path.read_bytes())
    except FileNotFoundError:
        return [f"{path}: is missing"]
    except (OSError, ValueError) as error:
        return [f"{path}: cannot be read: {str(error).splitlines()[0]}"]
    if not isinstance(manifest, dict):
        return [f"{path}: is no manifest"]
    files = manifest.get("files")
    if files is None and "sha256" not in manifest:
        return []
    own = {key: value for key, value in manifest.items() if key != "sha256"}
    body = json.dumps(own, sort_keys=True).encode("utf-8", "replace")
    if hashlib.sha256(body).hexdigest() != manifest.get("sha256") or not isinstance(files, dict):
        return [f"{path}: was changed after it was written"]
    return [problem for name in files if (problem := _problem(folder / name, files[name]))]


def _problem(path: Path, told: dict[str, Any]) -> str:
    try:
        found = _sum(path)
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        return f"{path}: cannot be read: {(error.strerror or str(error)).lower()}"
    if found["size"] != told["size"]:
        return f"{path}: has {found['size']} bytes, not the {told['size']} that were written"
    return "" if found == told else f"{path}: was changed after it was written (its checksum differs)"


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"size": file.tell(), "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
