"""Settings: where they come from, and what a person reads when one is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from krill_tui.config.endpoints import API_KEY_FIELDS
from krill_tui.config.load import load_config, merge, public_dict
from krill_tui.config.presets import PRESETS
from krill_tui.config.schema import KrillConfig
from krill_tui.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | dict) -> Path:
        path = tmp_path / "config.json"
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    return write


def message_of(path: Path | None, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={}, **options)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_a_file_the_embedded_preset_is_used() -> None:
    config = load_config(environ={})
    assert config.preset == "tiny"
    assert (config.policy.kind, config.teacher.kind, config.env.backend) == ("local", "builtin", "builtin")
    assert config.skill_retrieval.embedder == "builtin"


def test_a_file_starts_from_the_papers_defaults(write) -> None:
    config = load_config(write({}), environ={})
    assert config.preset == "paper"
    assert config.sft.learning_rate == 1e-4
    assert (config.sft.batch_size, config.sft.epochs, config.sft.num_examples) == (16, 3, 7500)
    rl = config.rl
    assert (rl.learning_rate, rl.batch_size, rl.group_size) == (1e-6, 64, 8)
    assert (rl.kl_coeff, rl.clip_epsilon, rl.invalid_action_penalty) == (0.01, 0.2, 0.1)
    assert (rl.max_prompt_length, rl.max_response_length, rl.training_epochs) == (6000, 1024, 150)
    assert (config.skill_retrieval.top_k, config.skill_retrieval.similarity_threshold) == (6, 0.4)
    evolution = config.evolution
    assert (evolution.validation_interval, evolution.max_new_skills) == (5, 3)
    assert (evolution.max_analysis_deep, evolution.max_analysis_shallow) == (10, 5)
    assert evolution.evolution_threshold == 0.4
    assert (config.model.policy_model_id, config.model.teacher_model_id) == ("Qwen/Qwen2.5-7B-Instruct", "o3")
    assert config.env.max_steps == 50


def test_the_demo_config_loads_and_names_openai_throughout() -> None:
    model = load_config(ROOT / "config.demo.json", environ={}).model
    assert {model.policy_api_base, model.teacher_api_base, model.embedding_api_base} == {
        "https://api.openai.com/v1"
    }


def test_flags_win_over_the_file_and_the_file_over_the_preset(write) -> None:
    path = write({"preset": "tiny", "sft": {"epochs": 5, "batch_size": 3}})
    config = load_config(path, overrides={"sft": {"batch_size": 7}}, environ={})
    assert (config.sft.batch_size, config.sft.epochs) == (7, 5)
    assert config.policy.constrained is PRESETS["tiny"]["policy"]["constrained"]  # type: ignore[index]


def test_the_environments_key_fills_only_the_empty_ones(write) -> None:
    config = load_config(write({"model": {"teacher_api_key": "own"}}), environ={"OPENAI_API_KEY": "from-env"})
    assert config.model.teacher_api_key == "own"
    assert config.model.policy_api_key == config.model.embedding_api_key == "from-env"


def test_keys_are_in_no_repr_and_in_no_file_of_a_run() -> None:
    config = load_config(environ={"OPENAI_API_KEY": "sk-secret"})
    assert "sk-secret" not in repr(config) + json.dumps(public_dict(config))
    assert not set(public_dict(config)["model"]) & set(API_KEY_FIELDS)


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_webshop_has_its_own_step_limit_and_free_queries_unless_asked_otherwise(preset: str) -> None:
    shop = {"env": {"name": "webshop"}}
    config = load_config(preset=preset, overrides=shop, environ={})
    assert (config.env.max_steps, config.policy.constrained) == (15, False)
    asked = merge(shop, {"env": {"max_steps": 7}, "policy": {"constrained": True}})
    config = load_config(preset=preset, overrides=asked, environ={})
    assert (config.env.max_steps, config.policy.constrained) == (7, True)


def test_a_step_limit_of_procedural_households_is_not_one_of_genuine_games() -> None:
    assert load_config(environ={}).env.max_steps == PRESETS["tiny"]["env"]["max_steps"]  # type: ignore[index]
    assert load_config(overrides={"env": {"backend": "games"}}, environ={}).env.max_steps == 50


def test_what_a_run_keeps_loads_again_as_the_same_config(write) -> None:
    config = load_config(overrides={"seed": 3, "env": {"max_steps": 9}}, environ={})
    assert load_config(write(public_dict(config)), environ={}) == config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"sft": {"learning_rte": 1}},
            ["unknown field 'sft.learning_rte'", "did you mean 'sft.learning_rate'"],
        ),
        ({"learning_rate": 1}, ["unknown field 'learning_rate'", "learning_rate'?"]),
        ({"evolutoin": {}}, ["unknown field 'evolutoin'", "did you mean 'evolution'"]),
        ({"zzzzqqq": 1}, ["unknown field 'zzzzqqq'"]),
        ({"sft": {"epochs": "three"}}, ["sft.epochs", "integer", '"three"']),
        ({"sft": {"epochs": 1.5}}, ["sft.epochs", "integer"]),
        ({"sft": {"epochs": True}}, ["sft.epochs", "integer"]),
        ({"rl": {"clip_epsilon": 1.5}}, ["rl.clip_epsilon", "less than 1"]),
        ({"env": {"name": "chess"}}, ["env.name", "'alfworld'", "'webshop'"]),
        ({"sft": []}, ["sft", "group of fields"]),
        ({"sft": 3}, ["sft", "group of fields"]),
        ({"preset": "huge"}, ["unknown preset 'huge'", "paper, tiny"]),
        ({"preset": 3}, ["preset"]),
        ({"seed": -1}, ["seed", "greater than or equal to 0"]),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(write, config: dict, said: list[str]) -> None:
    message = message_of(write(config))
    assert all(part in message for part in ["config.json", *said]), message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON: "),
        ("{", "at line 1 column 2"),
        ('{"seed": ' + "1" * 5000 + "}", "seed: "),
        ("[1]", "one JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"seed": 1, "seed": 2}', "stands twice"),
        ('{"sft": {"learning_rate": NaN}}', "finite"),
        ('{"sft": {"learning_rate": 1e999}}', "finite"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(write, text: str, said: str) -> None:
    assert said in message_of(write(text))


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "nowhere.json")
    assert "cannot be read" in message_of(tmp_path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00{}")
    assert "not a text file" in message_of(binary)


def test_merging_goes_section_by_section_and_changes_neither_side() -> None:
    base: dict[str, object] = {"a": {"x": 1, "y": 2}, "b": 1}
    top: dict[str, object] = {"a": {"y": 3}, "c": {"z": 1}}
    assert merge(base, top) == {"a": {"x": 1, "y": 3}, "b": 1, "c": {"z": 1}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=8,
)
sections = st.sampled_from(sorted(KrillConfig.model_fields)) | st.text(max_size=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(sections, json_values, max_size=3))
def test_any_json_is_a_config_or_one_line(write, data: dict) -> None:
    try:
        load_config(write(data), environ={})
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("given", "meant"), [(True, "group"), (False, "none"), ("batch", "batch"), ("none", "none")]
)
def test_scaling_of_rewards_is_a_name_or_the_old_yes_and_no(given: bool | str, meant: str) -> None:
    config = load_config(overrides={"rl": {"scale_rewards": given}}, environ={})
    assert config.rl.scale_rewards == meant


def test_another_scaling_of_rewards_is_refused_by_name() -> None:
    assert "scale_rewards" in message_of(None, overrides={"rl": {"scale_rewards": "global"}})
    assert "scale_rewards" in message_of(None, overrides={"rl": {"scale_rewards": 1}})


def test_every_number_has_an_end_and_what_is_far_beyond_is_one_line() -> None:
    """A count of a million millions is refused; nothing begins to make a list of it."""
    sections: list[tuple[str, type[BaseModel]]] = [("", KrillConfig)]
    numbers = 0
    while sections:
        prefix, section = sections.pop()
        for name, info in section.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                sections.append((f"{name}.", info.annotation))
                continue
            if info.annotation not in (int, float, int | None, float | None):
                continue
            numbers += 1
            bounded = any(hasattr(limit, "le") or hasattr(limit, "lt") for limit in info.metadata)
            assert bounded, f"{prefix}{name} has no upper end"
            section_name = prefix.removesuffix(".")
            beyond: dict[str, object] = {name: 10**30}
            with pytest.raises(ConfigError, match=f"{prefix}{name}: input should be less than"):
                load_config(overrides={section_name: beyond} if prefix else beyond, environ={})
    assert numbers > 40
    assert load_config(overrides={"seed": 2**63 - 1}, environ={}).seed == 2**63 - 1
