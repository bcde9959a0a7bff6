"""JSON that others wrote: read strictly, or leniently where one bad record must not cost the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.cli.options import parse_assignment
from krill_tui.cli.play import read_script
from krill_tui.config.load import load_config
from krill_tui.errors import DataError, KrillError, UsageError
from krill_tui.io.files import read_json
from krill_tui.io.json_text import DEEPEST, NotJson, loads, loads_leniently, problem
from krill_tui.io.text import clean_text
from krill_tui.skills.loose_json import loose_values
from krill_tui.skills.replies import UnreadableReply, parse_reply

HUGE = "1" * 5000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("NaN", "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ("1e999", "too large for a number"),
        (f"[{HUGE}]", "a number of 5000 digits"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested too deeply"),
        ('{"a": 1, "a": 2}', 'the key "a" stands twice'),
        ("[1, 2", "at line 1 column"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_what_no_program_should_take_over_is_one_line(text: str | bytes, says: str) -> None:
    with pytest.raises(NotJson, match=says) as caught:
        loads(text)
    assert "\n" not in str(caught.value)


def test_text_of_any_file_is_read_as_it_stands() -> None:
    assert loads("\ufeff[1, -2.5e3, true]") == [1, -2500.0, True]
    assert loads('{"\\ud800": ["\\udfff", "\\ud83d\\ude00"]}') == {"\ufffd": ["\ufffd", "\U0001f600"]}
    assert loads("[" * DEEPEST + "]" * DEEPEST)


def test_a_number_that_is_none_spoils_only_its_record_where_records_are_read() -> None:
    records = loads_leniently(f'[{{"a": 1}}, {{"a": [NaN]}}, {{"a": {HUGE}}}, {{"a": 1e999}}]')
    assert [problem(record) for record in records] == [
        None,
        "NaN is no number",
        "Infinity is no number",
        "Infinity is no number",
    ]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\u d8019eENa-+.\n').map(str.encode))
def test_any_bytes_are_a_value_or_one_error(data: bytes) -> None:
    try:
        value = loads(data)
    except NotJson as error:
        assert "\n" not in str(error)
    else:
        assert problem(value) is None
        assert loads(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize("text", [f'{{"seed": {HUGE}}}', "[" * 100_000, '{"seed": NaN}', '{"a": 1, "a": 2}'])
def test_config_files_scripts_and_assignments_are_read_with_the_same_care(tmp_path: Path, text: str) -> None:
    path = tmp_path / "in.json"
    path.write_text(text)
    for read in (load_config, read_script, read_json):
        with pytest.raises(KrillError) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    value = text.removeprefix('{"seed": ').removesuffix("}") if "seed" in text else text
    with pytest.raises(UsageError, match=r"--set seed: "):
        parse_assignment(f"seed={value}")


def test_a_bank_with_a_long_number_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bank.json").write_text(f'{{"meta": {{"1": {{"version": {HUGE}}}}}}}')
    with pytest.raises(DataError, match="5000 digits"):
        read_json(tmp_path / "bank.json")


# Replies of a teacher


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('[{"a": "b", "c": "d', [[{"a": "b", "c": "d"}]]),
        ("[{'a': 'it's hot',},]", [[{"a": "it's hot"}]]),
        ('[{a: hot mug, "b": 1.5} // no\n {"c": True}]', [[{"a": "hot mug", "b": 1.5}, {"c": True}]]),
        ('{"a": "say "hi", then go" "b": null}', [{"a": 'say "hi", then go', "b": None}]),
        ('[{“a”: “b”}] and [{"c": "d\ne"}]', [[{"a": "b"}], [{"c": "d\ne"}]]),
        ("see [1, two]", [[1, "two"]]),
    ],
)
def test_json_as_models_write_it_is_read(text: str, values: list[Any]) -> None:
    assert loose_values(text) == values


PARTS = (
    *(
        "[{",
        '"',
        "'",
        '"a" ',
        '{"a":',
        ",",
        '["a", ',
        "a: b, ",
        "\n",
        " ",
        "\\",
        '\\"',
        "// x\n",
        "/*",
        "}{",
        "}]",
    ),
    *("it's ", "1.", "=", ":", "“a” ", '" ', '",', "```", "```json\n[", "[ ", '{"a": "b", \'c\': "d" e" }, '),
)


@pytest.mark.parametrize("part", PARTS)
def test_time_and_levels_of_a_reply_are_bounded(part: str) -> None:
    """The bound is on steps, so it is the same on any machine: the limit in seconds leaves room for a busy one."""
    from time import process_time

    for before in ('[{"name": "', "[{", "", "```json\n["):
        started = process_time()
        try:
            parse_reply(before + part * (60_000 // len(part)))
        except UnreadableReply as error:
            assert "\n" not in str(error)
        assert process_time() - started < 0.5


@given(st.text(alphabet="ab \t\n\u202e\u200b\u200d\ud800\U000e0041é\x00\x85", max_size=12))
def test_text_that_was_cleaned_is_clean_for_good(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once == once.strip() and "  " not in once
