"""`krill convert`: counts, refusals and files that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krill_tui.cli.app import run
from krill_tui.skills.formats.trajectories import load_trajectories, save_trajectories
from krill_tui.trajectory import StopReason
from tests.episodes import LOST, episode
from tests.test_formats_foreign import HOUSE, RUST, memory
from tests.test_formats_trajectories import SHOP, household

Krill = Callable[..., tuple[int, str, str]]
FORMATS = ("eto", "rust", "skillrl", "agentgym", "to-rust")
GOOD: dict[str, list[Any]] = {
    "eto": [household(), SHOP],
    "rust": [RUST, {**RUST, "id": "other"}],
    "skillrl": [memory(), memory(memory_id="mem_alfworld_2")],
    "agentgym": [HOUSE, {**HOUSE, "item_id": "alfworld_8"}],
    "to-rust": [
        episode("a").model_dump(mode="json"),
        episode("b", play=LOST, success=False).model_dump(mode="json"),
    ],
}


@pytest.fixture
def krill(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Krill:
    """Run one command line in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def krill(*arguments: object) -> tuple[int, str, str]:
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return krill


@pytest.mark.parametrize("kind", FORMATS)
def test_good_records_are_converted_bad_ones_named_and_the_bytes_are_always_the_same(
    krill: Krill, kind: str
) -> None:
    first, second = GOOD[kind]
    Path("in.json").write_text(
        json.dumps([5, first, {}, second, first, {**first, "conversations": 0, "steps": 0}])
    )
    code, out, err = krill("convert", kind, "in.json", "out/a.json", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    if kind == "skillrl":  # a memory has neither of the two fields that were spoilt
        assert (facts["read"], facts["converted"], facts["refused"]) == (6, 3, 3)
    else:
        assert (facts["read"], facts["converted"], facts["refused"]) == (6, 2, 4)
        assert [refusal["record"] for refusal in facts["refusals"]] == [0, 2, 4, 5]
    assert sum(facts["categories"].values()) == facts["converted"] and facts["left"] == 0
    assert all(refusal["reason"] for refusal in facts["refusals"])
    assert len(load_trajectories("out/a.json")) == facts["converted"]
    assert krill("convert", kind, "in.json", "out/b.json")[0] == 0
    assert Path("out/a.json").read_bytes() == Path("out/b.json").read_bytes()


def test_the_counts_are_printed_and_long_lists_of_refusals_cut(krill: Krill) -> None:
    Path("in.json").write_text(json.dumps([RUST, *["\x1b[31mno"] * 12]))
    code, out, _ = krill("convert", "rust", "in.json", "out.json")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "wrote out.json: 1 trajectories of 13 records"
    assert lines[1].startswith("  record 1 left out: value: ")
    assert lines[-2:] == ["  and 2 more left out", "read 13, converted 1, refused 12"]


def test_what_lies_behind_the_maximum_is_said(krill: Krill) -> None:
    Path("in.json").write_text(json.dumps([{**RUST, "id": str(n)} for n in range(120)]))
    out = krill("convert", "rust", "in.json", "out.json", "--max", 30)[1]
    assert out.endswith("read 30, converted 30, refused 0\n90 more records were not read: --max takes more\n")
    assert json.loads(krill("convert", "rust", "in.json", "out.json", "--json")[1])["converted"] == 120
    Path("in.json").write_text(json.dumps([household(extra=n) for n in range(120)]))
    facts = json.loads(krill("convert", "eto", "in.json", "out.json", "--json")[1])
    assert (facts["converted"], facts["left"]) == (100, 20)


def test_our_trajectories_reach_the_rust_project_and_come_back(krill: Krill) -> None:
    played = [episode("a"), episode("b", play=LOST, success=False), episode("c", stop=StopReason.CANCELLED)]
    save_trajectories("ours.json", played)
    facts = json.loads(krill("convert", "to-rust", "ours.json", "rust.json", "--json")[1])
    assert (facts["converted"], facts["refused"], facts["categories"]) == (2, 1, {"Heat": 2})
    krill("convert", "rust", "rust.json", "back.json")
    assert [(t.task, t.success, len(t.steps)) for t in load_trajectories("back.json")] == [
        (t.task, t.success, len(t.steps)) for t in played[:2]
    ]
    krill("convert", "to-rust", "back.json", "again.json")
    assert Path("again.json").read_bytes() == Path("rust.json").read_bytes()


def test_a_run_folder_can_be_converted(krill: Krill) -> None:
    Path("run").mkdir()
    Path("run/trajectories.jsonl").write_text(episode("a").model_dump_json() + "\n{")
    assert "read 1, converted 1, refused 0" in krill("convert", "to-rust", "run", "rust.json")[1]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("text", ["", "{}", "3", "[3]", '[{"id": 1}]', "[" * 100_000, "\ufeff{}", "[1, 2"])
def test_a_file_that_is_not_of_the_kind_is_one_line_and_nothing_is_written(
    krill: Krill, kind: str, text: str
) -> None:
    Path("in.json").write_text(text)
    code, out, err = krill("convert", kind, "in.json", "out.json")
    assert (code, out) == (2, "") and err.startswith("krill: in.json: ") and err.count("\n") == 1
    assert not Path("out.json").exists()


def test_a_file_of_another_format_is_named(krill: Krill) -> None:
    Path("in.json").write_text(json.dumps([RUST]))
    code, _, err = krill("convert", "skillrl", "in.json", "out.json")
    assert code == 2 and "record 0: memory_id: Field required (it looks like rust)" in err


def test_an_empty_list_converts_to_an_empty_list(krill: Krill) -> None:
    Path("in.json").write_text("[]")
    assert krill("convert", "rust", "in.json", "out.json")[0] == 0
    assert load_trajectories("out.json") == []


@pytest.mark.parametrize(
    ("source", "output", "says"),
    [
        ("in.json", "in.json", "would be written over"),
        ("in.json", "./in.json", "would be written over"),
        ("in.json", "in.json/out.json", "cannot be written"),
        ("a" * 300, "out.json", "cannot be read"),
        ("in.json", "a" * 300, "cannot be written"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(krill: Krill, source: str, output: str, says: str) -> None:
    Path("in.json").write_text(json.dumps([RUST]))
    code, _, err = krill("convert", "rust", source, output)
    assert code == 2 and says in err and err.count("\n") == 1
    assert json.loads(Path("in.json").read_text()) == [RUST]


def test_inspect_names_the_bad_record_of_a_file_of_trajectories(krill: Krill) -> None:
    Path("in.json").write_text(json.dumps([RUST, {**RUST, "success": "perhaps"}]))
    code, out, _ = krill("inspect", "in.json")
    assert code == 0 and "1 of 2 records left out: record 1: success: " in out
    facts = json.loads(krill("inspect", "in.json", "--json")[1])
    assert facts["trajectories"] == 1 and [r["record"] for r in facts["refusals"]] == [1]
    Path("in.json").write_text(json.dumps([{**RUST, "success": "perhaps"}]))
    code, _, err = krill("inspect", "in.json")
    assert code == 2 and "record 0 is no trajectory: success" in err


def test_inspect_says_of_a_file_that_is_neither_what_was_tried(krill: Krill) -> None:
    Path("in.json").write_text('{"config": {}}')
    code, _, err = krill("inspect", "in.json")
    assert code == 2 and "read as a skill bank, it is no skill bank of a known format" in err
    assert "as trajectories, it holds no list of trajectories" in err and err.count("\n") == 1


WORDS = st.sampled_from(
    [
        "conversations",
        "from",
        "value",
        "item_id",
        "reward",
        "memory_id",
        "tags",
        "environment",
        "outcome",
        "content",
        "task_meta",
        "original_goal",
        "refined_trajectory",
        "action",
        "critical_observation",
        "task_description",
        "steps",
        "observation",
        "success",
        "metadata",
        "id",
        "stop_reason",
        "env",
        "game_file",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        [
            "human",
            "gpt",
            "Alfworld",
            "Success",
            "Action: look",
            "\ud800",
            "Your task is to: a",
            "[SEP] Instruction: a",
        ]
    )
)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(WORDS, v, max_size=5), max_leaves=12
)


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A good record of some kind, in which one value anywhere is another."""
    record = json.loads(json.dumps(draw(st.sampled_from([r for records in GOOD.values() for r in records]))))
    place = record
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
            place[key] = draw(VALUES)
            return record
        place = place[key]


def check_one_line(capfd: pytest.CaptureFixture[str], path: Path, kind: str) -> None:
    code = run(["convert", kind, str(path), str(path.with_name("fuzzed_out.json"))])
    out, err = capfd.readouterr()
    assert (code, err) == (0, "") or (code == 2 and err.count("\n") == 1 and out == ""), err
    assert run(["inspect", str(path)]) in (0, 2)
    assert "inside Krill" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzzed.json"


FUZZ = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(records=st.lists(VALUES | spoilt(), max_size=3) | VALUES, kind=st.sampled_from(FORMATS))
def test_no_json_gives_a_traceback(
    capfd: pytest.CaptureFixture[str], fuzzed: Path, records: Any, kind: str
) -> None:
    fuzzed.write_text(json.dumps(records))
    check_one_line(capfd, fuzzed, kind)


@FUZZ
@given(data=st.data(), kind=st.sampled_from(FORMATS))
def test_no_truncated_or_damaged_file_gives_a_traceback(
    capfd: pytest.CaptureFixture[str], fuzzed: Path, data: st.DataObject, kind: str
) -> None:
    content = json.dumps(GOOD[kind]).encode()
    end = data.draw(st.integers(0, len(content)))
    path = fuzzed.with_suffix(data.draw(st.sampled_from([".json", ".jsonl"])))
    path.write_bytes(content[:end] + data.draw(st.binary(max_size=3)))
    check_one_line(capfd, path, kind)
