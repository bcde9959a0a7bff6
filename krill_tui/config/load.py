"""From preset, file, flags and environment to one checked `KrillConfig`."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from krill_tui.config import endpoints
from krill_tui.config.presets import PRESETS
from krill_tui.config.schema import EnvConfig, KrillConfig, RlConfig, SftConfig
from krill_tui.errors import ConfigError
from krill_tui.io.json_text import NotJson, loads_leniently
from krill_tui.io.secrets import masked

WEBSHOP_STEPS = 15
"""Steps of an episode in the paper's WebShop runs."""
KRILL_TINY_VOCABULARY = 1024
"""Tokens that models of krill-tiny's kind have at most; chat models have tens of thousands."""


def load_config(
    path: Path | None = None,
    *,
    preset: str | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    stored: Mapping[str, object] | None = None,
) -> KrillConfig:
    """Preset < file < overrides; the environment fills keys and addresses left empty (`config/endpoints.py`).

    Without a file the embedded preset (`tiny`) is the default; a file starts from the paper's defaults
    unless it, or the caller, names another preset. `stored` is what a run's file holds, already read.

    Raises:
        ConfigError: unreadable, not JSON, unknown field, wrong type or out of range; one line.
    """
    environ = os.environ if environ is None else environ
    data = stored if stored is not None else _read(path) if path is not None else {}
    name = preset or data.get("preset", "paper" if data or path else "tiny")
    if not isinstance(name, str) or name not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise ConfigError(f"{_where(path)}preset: unknown preset '{name}'", hint=f"known: {known}")
    asked = merge(data, overrides or {})
    merged = merge(PRESETS[name], asked)
    merged["preset"] = name
    _suit_the_world(merged, asked)
    _suit_the_model(merged, asked)
    endpoints.fill_addresses(merged, asked, environ)
    try:
        config = KrillConfig.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        raise ConfigError(_where(path) + explain(error)) from None
    return endpoints.fill_keys(config, overrides or {}, environ)


def _suit_the_world(merged: dict[str, object], asked: Mapping[str, object]) -> None:
    """What a preset sets for its procedural households and nobody asked for, as the world in use has it.

    Genuine games keep the dataset's step limit. WebShop has its own, and replies there are never bound to the
    listed actions, because no list holds the queries.
    """
    env = merged.get("env")
    if not isinstance(env, dict):
        return
    if env.get("name") == "webshop":
        suited = {"env": {"max_steps": WEBSHOP_STEPS}, "policy": {"constrained": False}}
    elif env.get("backend", "builtin") != "builtin":
        suited = {"env": {"max_steps": EnvConfig().max_steps}}
    else:
        return
    merged.update(merge(merged, merge(suited, asked)))


def _suit_the_model(merged: dict[str, object], asked: Mapping[str, object]) -> None:
    """What a preset sets for krill-tiny and nobody asked for, as any other model needs it.

    A chat model has never seen the compact prompt, its tokens are more, and it takes smaller steps. One behind an
    endpoint is not bound to the listed actions, and plays as long as the world lets it.
    """
    policy = merged.get("policy")
    if not isinstance(policy, dict):
        return
    kind = policy.get("kind")
    if kind != "openai" and (kind != "local" or is_krill_tiny(policy.get("model"))):
        return
    rl = RlConfig()
    suited: dict[str, object] = {
        "policy": {"prompt_style": "full", "list_admissible": True, "threads": 0},
        "sft": {"learning_rate": SftConfig().learning_rate},
        "rl": {
            "learning_rate": rl.learning_rate,
            "max_prompt_length": rl.max_prompt_length,
            "max_response_length": rl.max_response_length,
        },
    }
    if kind == "openai":
        shop = isinstance(env := merged.get("env"), dict) and env.get("name") == "webshop"
        steps = {"max_steps": WEBSHOP_STEPS if shop else EnvConfig().max_steps}
        suited = merge(suited, {"policy": {"constrained": False}, "env": steps})
    merged.update(merge(merged, merge(suited, asked)))


def is_krill_tiny(model: object) -> bool:
    """Whether `policy.model` is the embedded model (empty), or a folder of its kind, known by its small vocabulary."""
    if not isinstance(model, str) or not model:
        return True
    try:
        facts = loads_leniently((Path(model) / "config.json").read_bytes())
        return int(facts["vocab_size"]) <= KRILL_TINY_VOCABULARY
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def public_dict(config: KrillConfig) -> dict[str, Any]:
    """The config as it is written into a run: every field, without keys and without the secrets in addresses."""
    return endpoints.without_secrets(config)


def merge(base: Mapping[str, object], top: Mapping[str, object]) -> dict[str, object]:
    """`top` over `base`, section by section; neither is changed."""
    result: dict[str, object] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()
    }
    for key, value in top.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merge(cast("Mapping[str, object]", below), cast("Mapping[str, object]", value))
        result[key] = value
    return result


def explain(error: ValidationError) -> str:
    """The first problem of a validation in one line that names the field and, if unknown, the nearest one."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    field = _printable(".".join(location)) or "the file"
    if first["type"] == "extra_forbidden":
        near = _nearest(location)
        hint = f"; did you mean '{near}'?" if near else ""
        return f"unknown field '{field}'{hint}"
    if first["type"] == "model_type":
        shown = "what it is" if endpoints.holds_key(location) else masked(_shown(first["input"]))
        return f"{field}: should be a group of fields (an object), not {shown}"
    message = first["msg"][0].lower() + first["msg"][1:]
    if endpoints.holds_key(location):
        return f"{field}: {message}"
    return f"{field}: {message}, not {masked(_shown(first['input']))}"


def _printable(name: str) -> str:
    """A field name from a file as it can stand in a line."""
    name = name if name.isprintable() else repr(name)[1:-1]
    return name if len(name) <= 80 else name[:79] + "…"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(location: list[str]) -> str | None:
    """The known field most like the last part of `location`: in its own section first, else anywhere."""
    section: type[BaseModel] = KrillConfig
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    prefix = ".".join(location[:-1])
    own = difflib.get_close_matches(location[-1], list(section.model_fields), n=1)
    if own:
        return f"{prefix}.{own[0]}" if prefix else own[0]
    anywhere = {name: f"{group}.{name}" for group, name in _all_fields()}
    far = difflib.get_close_matches(location[-1], list(anywhere), n=1)
    return anywhere[far[0]] if far else None


def _all_fields() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for group, info in KrillConfig.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.extend((group, name) for name in annotation.model_fields)
    return found


def _where(path: Path | None) -> str:
    return f"{path}: " if path is not None else ""


def _read(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file") from None
    try:
        data = loads_leniently(text, once=True)  # the check of the fields names a number that is none
    except NotJson as error:
        raise ConfigError(f"{path}: {error.told()}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: should hold one JSON object")
    return data
