"""Targets that a person names: what may be written to, what becomes of it, and when a wrong one is refused."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from krill_tui.cli.app import run
from krill_tui.errors import UsageError
from krill_tui.io.files import check_output, write_output

COLLECT = ["collect", "--policy", "expert", "--episodes", "2", "--display", "none", "--run", "r"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path, umask: None) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_text("before")
    old.chmod(0o640)
    for path in (new, old):
        write_output(path, "text")
        assert path.read_text() == "text"
    assert (mode(new), mode(old)) == (0o644, 0o640)


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    target, link, dangling = tmp_path / "target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("before")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "later")
    write_output(link, "a")
    write_output(dangling, "b")
    assert link.is_symlink() and target.read_text() == "a"
    assert dangling.is_symlink() and (tmp_path / "later").read_text() == "b"


def test_pipes_and_devices_are_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_output(pipe, "through")
    reader.join(10)
    assert read == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)
    write_output(Path(os.devnull), "away")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_that_is_full_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*COLLECT, "--output", "/dev/full"]) == 1
    err = capfd.readouterr().err.splitlines()
    assert "/dev/full: cannot be written: no space left on device" in err[-1]


def test_wrong_targets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "below", "cannot be written"),
        (tmp_path / ("a" * 300), "cannot be written"),
    ):
        with pytest.raises(UsageError, match=says):
            check_output(path)


def _targets(tmp_path: Path) -> list[list[str]]:
    source = tmp_path / "source.json"
    source.write_text("[]")
    return [
        [*COLLECT, "--output"],
        ["distill", "--trajectories", str(source), "--run", "r", "--display", "none", "--output"],
        ["convert", "rust", str(source)],
    ]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_wrong_target_is_refused_before_the_work(
    tmp_path: Path, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*_targets(tmp_path)[number], str(tmp_path)]) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err == f"krill: {tmp_path}: is a folder (name a file in it)\n"
    assert not (tmp_path / "runs" / "r").exists()


def test_files_of_a_run_are_its_owners_alone(tmp_path: Path, umask: None) -> None:
    assert run([*COLLECT, "--output", str(tmp_path / "out.json")]) == 0
    root = tmp_path / "runs" / "r"
    for path in (root, *root.rglob("*")):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert mode(tmp_path / "out.json") == 0o644
