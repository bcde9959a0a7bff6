"""Addresses and keys of model servers: what the environment fills in, who gets a key, what is never stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from krill_tui.config.schema import KrillConfig
from krill_tui.errors import ConfigError
from krill_tui.io import secrets
from krill_tui.io.secrets import is_secret
from krill_tui.io.urls import address_problem, host_of, is_loopback
from krill_tui.io.urls import without_secrets as shown

API_KEY_FIELDS = ("policy_api_key", "teacher_api_key", "embedding_api_key")
"""Of `model`."""
NO_RESULT = (*API_KEY_FIELDS, "timeout", "max_retries", "first_wait", "longest_wait")
"""Fields of `model` that no result depends on."""
KEY_HOSTS = "KRILL_KEY_HOSTS"
"""Environment variable: hosts, with commas between them, that may get the environment's key though a file names them."""

_BASE_VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
_OPENAI = "api.openai.com"
_ENDPOINTS = {
    "policy": ("model", "policy_api_base", "policy_api_key", ("OPENAI_API_KEY",)),
    "teacher": ("model", "teacher_api_base", "teacher_api_key", ("OPENAI_API_KEY",)),
    "embeddings": ("model", "embedding_api_base", "embedding_api_key", ("OPENAI_API_KEY",)),
    "sampler": ("policy", "sampler_url", "sampler_api_key", ("VLLM_API_KEY", "OPENAI_API_KEY")),
}
"""Who calls -> section, address, key, environment variables of the key."""
_ADDRESSES = (("env", "url"), *((section, field) for section, field, _, _ in _ENDPOINTS.values()))


def fill_addresses(
    merged: dict[str, object], asked: Mapping[str, object], environ: Mapping[str, str]
) -> None:
    """`OPENAI_BASE_URL` where no address of a chat or embeddings endpoint was asked for.

    Also where a run's address lacks the password or key that it was given with, and the variable's is the same one.
    """
    base = next((v for name in _BASE_VARIABLES if (v := environ.get(name, "").strip())), "")
    model, wanted, left_out = merged.get("model", {}), asked.get("model", {}), asked.get("withheld", ())
    if not base or not isinstance(model, dict) or not isinstance(wanted, Mapping):
        return
    for section, field, _, _ in _ENDPOINTS.values():
        if section != "model":
            continue
        incomplete = (
            isinstance(left_out, list | tuple)
            and f"model.{field}" in left_out
            and wanted.get(field) == shown(base)
        )
        if field not in wanted or incomplete:
            model[field] = base
    merged["model"] = model


def fill_keys(config: KrillConfig, typed: Mapping[str, object], environ: Mapping[str, str]) -> KrillConfig:
    """The config with its keys: its own, else the environment's where the address may have it.

    The environment's key goes to OpenAI, to this machine, to addresses from the command line (`typed`) or the
    environment, and to hosts in `KRILL_KEY_HOSTS`. An address that only a file names, be it a downloaded config or
    somebody else's run, does not get it.

    Raises:
        ConfigError: an endpoint in use has a key that no header can hold, or an address that is none.
    """
    updates: dict[str, dict[str, str]] = {"model": {}, "policy": {}}
    for role, (section, address, key_field, variables) in _ENDPOINTS.items():
        url = str(getattr(getattr(config, section), address))
        own = str(getattr(getattr(config, section), key_field))
        source = f"{section}.{key_field}"
        key = own
        if not own:
            variable = next((name for name in variables if environ.get(name, "").strip()), "")
            if variable and _may_have(url, section, address, typed, environ):
                key, source = environ[variable], f"{source} (from {variable})"
        key = key.strip(" \t\r\n\f\v")
        if _in_use(config, role):
            _check(key, source, url, f"{section}.{address}")
        updates[section][key_field] = key
        if is_secret(key):
            secrets.register(key)
        secrets.register(*secrets.url_secrets(url))
    secrets.register(*secrets.url_secrets(config.env.url))
    sections = {name: getattr(config, name).model_copy(update=fields) for name, fields in updates.items()}
    missing = tuple(name for name in config.withheld if not secrets.url_secrets(_value(config, name)))
    return config.model_copy(update={**sections, "withheld": missing})


def kept_back(config: KrillConfig, role: str, environ: Mapping[str, str]) -> str:
    """Why an endpoint goes without the environment's key, and what changes that; empty where it does not."""
    section, address, key_field, variables = _ENDPOINTS[role]
    if getattr(getattr(config, section), key_field):
        return ""
    variable = next((name for name in variables if environ.get(name, "").strip()), "")
    if not variable:
        return ""
    url = getattr(getattr(config, section), address)
    host = host_of(url)
    return (
        f"{variable} is not sent to {host}, which only a file names; {KEY_HOSTS}={host}, or --set {section}.{address}="
        f"{shown(url)}, sends it"
    )


def without_secrets(config: KrillConfig) -> dict[str, Any]:
    """Every field as a run stores it: no key, and addresses without what only their owner should know."""
    data = config.model_dump(mode="json")
    left_out = set(config.withheld)
    for section, _, key_field, _ in _ENDPOINTS.values():
        del data[section][key_field]
    for section, field in _ADDRESSES:
        url = data[section][field]
        if secrets.url_secrets(url):
            data[section][field] = shown(url)
            left_out.add(f"{section}.{field}")
    data["withheld"] = sorted(left_out)
    return data


def holds_key(location: Sequence[str]) -> bool:
    """Whether a field, or the group it is, may hold a key: its value is not repeated in an error."""
    return bool(location) and (location[-1].endswith("api_key") or list(location) in (["model"], ["policy"]))


def _value(config: KrillConfig, name: str) -> str:
    section, _, field = name.partition(".")
    return str(getattr(getattr(config, section, None), field, ""))


def _may_have(
    url: str, section: str, address: str, typed: Mapping[str, object], environ: Mapping[str, str]
) -> bool:
    host = host_of(url)
    wanted = typed.get(section)
    hosts = {name.strip().lower() for name in environ.get(KEY_HOSTS, "").split(",")}
    return (
        is_loopback(host)
        or (isinstance(wanted, Mapping) and address in wanted)
        or (url.startswith("https://") and (host == _OPENAI or host.endswith(f".{_OPENAI}")))
        or url in (environ.get(name, "").strip() for name in _BASE_VARIABLES)
        or host in hosts - {""}
    )


def _in_use(config: KrillConfig, role: str) -> bool:
    return {
        "policy": config.policy.kind == "openai",
        "teacher": config.teacher.kind == "openai",
        "embeddings": config.skill_retrieval.embedder == "openai",
        "sampler": config.policy.kind == "local" and config.policy.sampler == "vllm",
    }[role]


def _check(key: str, source: str, url: str, address: str) -> None:
    for position, character in enumerate(key, 1):
        if not "!" <= character <= "~":
            raise ConfigError(
                f"{source} holds a character that no key has (U+{ord(character):04X} at {position})",
                hint="copy the key again, without quotes and line breaks",
            )
    if problem := address_problem(url):
        raise ConfigError(f"{address}: {problem}", hint="it is like http://localhost:8000/v1")
