"""Which server gets which key and which address, what a run stores of them, and how a model behind one is played."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from krill_tui.cli.app import run
from krill_tui.config.load import load_config, public_dict
from krill_tui.errors import ConfigError
from krill_tui.io.urls import host_of, is_loopback, without_secrets

KEY = "sk-settings-0123456789"
REMOTE = "https://models.example/v1"
Krill = Callable[..., tuple[int, str, str]]


class Recorder(ThreadingHTTPServer):
    """A chat endpoint that keeps what it is asked, and looks around."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.refuses_with = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        recorder = self.server
        assert isinstance(recorder, Recorder)
        recorder.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status = recorder.refuses_with or 200
        said: dict[str, Any] = {
            "choices": [
                {"message": {"content": "<think>why</think><action>look</action>"}, "finish_reason": "stop"}
            ]
        }
        data = json.dumps({"error": {"message": "no such key"}} if status != 200 else said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    server = Recorder()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def krill(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Krill:
    monkeypatch.chdir(tmp_path)

    def krill(*arguments: object) -> tuple[int, str, str]:
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return krill


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    def write(data: object) -> Path:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(data))
        return path

    return write


def collected(base: str, *more: object) -> list[object]:
    return [
        *("collect", "--policy", "openai", "--run", "r", "--display", "plain"),
        *("--set", "collect.episodes=1", "--set", "env.max_steps=1"),
        *("--set", "teacher.max_retries=0", "--set", "faults.patience=0"),
        *more,
        *("--set", f"model.policy_api_base={base}"),
    ]


# How a model behind an endpoint is played


@pytest.mark.parametrize(("world", "steps"), [("alfworld", 50), ("webshop", 15)])
@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_a_model_behind_an_endpoint_has_the_full_prompt_and_the_worlds_limits(
    preset: str, world: str, steps: int
) -> None:
    config = load_config(
        preset=preset, overrides={"policy": {"kind": "openai"}, "env": {"name": world}}, environ={}
    )
    policy = config.policy
    assert (policy.prompt_style, policy.list_admissible, policy.constrained) == ("full", True, False)
    assert (config.env.max_steps, config.rl.max_response_length) == (steps, 1024)


def test_what_was_asked_for_stays_also_behind_an_endpoint() -> None:
    asked = {
        "policy": {"kind": "openai", "prompt_style": "compact"},
        "env": {"max_steps": 3},
        "rl": {"max_response_length": 9},
    }
    config = load_config(overrides=asked, environ={})
    assert (config.policy.prompt_style, config.env.max_steps, config.rl.max_response_length) == (
        "compact",
        3,
        9,
    )


@pytest.mark.parametrize("world", ["alfworld", "webshop"])
def test_the_first_call_of_the_default_policy_endpoint_holds_instructions(
    krill: Krill, recorder: Recorder, world: str
) -> None:
    code, _, err = krill(*collected(recorder.base, "--env", world, "--mock"))
    assert code == 0, err
    _, _, body = recorder.seen[0]
    system, first = body["messages"]
    assert "<action>" in system["content"] and system["role"] == "system"
    assert "Admissible actions:" in first["content"]
    assert body["max_tokens"] == 1024


def test_an_endpoint_that_is_asked_without_instructions_is_warned_of(
    krill: Krill, recorder: Recorder
) -> None:
    _, out, err = krill(*collected(recorder.base, "--set", "policy.prompt_style=compact"))
    assert "no instructions" in out + err
    # The message is still sent: where there is none, a chat template may put in words of its own.
    assert recorder.seen[0][2]["messages"][0] == {"role": "system", "content": ""}


# Keys


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1:9/v1", True),
        ("http://[::1]:9/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://evil.example/api.openai.com", False),
        ("https://127.0.0.1.evil.example/v1", False),
        ("https://api.openai.com@evil.example/v1", False),
        (REMOTE, False),
    ],
)
def test_the_environments_key_goes_where_a_file_may_not_lead_it(write, url: str, sent: bool) -> None:
    path = write({"preset": "tiny", "model": {"policy_api_base": url}})
    config = load_config(path, environ={"OPENAI_API_KEY": KEY})
    assert config.model.policy_api_key == (KEY if sent else "")


@pytest.mark.parametrize(
    ("typed", "environ"),
    [
        ({"model": {"policy_api_base": REMOTE}}, {}),
        ({}, {"OPENAI_BASE_URL": REMOTE}),
        ({}, {"KRILL_KEY_HOSTS": "other.example, Models.Example"}),
    ],
)
def test_who_names_the_host_sends_it_the_key(write, typed: dict[str, Any], environ: dict[str, str]) -> None:
    path = write({"preset": "tiny", "model": {"policy_api_base": REMOTE}})
    assert (
        load_config(path, overrides=typed, environ={"OPENAI_API_KEY": KEY, **environ}).model.policy_api_key
        == KEY
    )


def test_a_key_of_the_file_goes_to_the_address_of_the_file(write) -> None:
    path = write({"model": {"policy_api_base": REMOTE, "policy_api_key": "own"}})
    assert load_config(path, environ={"OPENAI_API_KEY": KEY}).model.policy_api_key == "own"


def test_a_call_that_goes_without_the_key_says_how_to_send_it(
    krill: Krill, recorder: Recorder, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # The loopback check is by name: a name that only the test resolves to this machine is a host like any other.
    monkeypatch.setattr("krill_tui.config.endpoints.is_loopback", lambda host: False)
    recorder.refuses_with = 401
    path = write({"preset": "tiny", "model": {"policy_api_base": recorder.base}})
    code, out, err = krill(*collected(recorder.base)[:-2], "--config", path)
    assert code == 1 and recorder.seen
    assert all("authorization" not in headers for _, headers, _ in recorder.seen)
    assert (
        "OPENAI_API_KEY is not sent to 127.0.0.1, which only a file names; KRILL_KEY_HOSTS=127.0.0.1" in err
    )
    assert KEY not in out + err


@pytest.mark.parametrize(
    ("variables", "key"),
    [
        ({"VLLM_API_KEY": "v-key-0123456789", "OPENAI_API_KEY": KEY}, "v-key-0123456789"),
        ({"OPENAI_API_KEY": KEY}, KEY),
        ({}, ""),
    ],
)
def test_the_sampler_has_a_key_of_its_own(variables: dict[str, str], key: str) -> None:
    config = load_config(environ=variables)
    assert config.policy.sampler_api_key == key
    assert "sampler_api_key" not in public_dict(config)["policy"]


def test_blanks_around_a_key_are_dropped() -> None:
    assert load_config(environ={"OPENAI_API_KEY": f"\n {KEY}\r\n"}).model.teacher_api_key == KEY


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sk-abc\u00a0", "U+00A0 at 7"),
        ("sk-\u200babc", "U+200B at 4"),
        ("sk-abc\ndef", "U+000A at 7"),
        ("“sk-abc”", "U+201C at 1"),
        ("Bearer sk-abc", "U+0020 at 7"),
    ],
)
@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_key_that_no_header_can_hold_is_named_by_its_place_alone(
    write, key: str, said: str, where: str
) -> None:
    own = {"teacher_api_key": key if where == "file" else ""}
    path = write({"preset": "tiny", "teacher": {"kind": "openai"}, "model": own})
    with pytest.raises(ConfigError, match="teacher_api_key") as caught:
        load_config(path, environ={"OPENAI_API_KEY": key} if where == "environment" else {})
    assert said in str(caught.value) and key not in str(caught.value) and caught.value.exit_code == 2


def test_a_key_that_nobody_uses_disturbs_nobody() -> None:
    load_config(environ={"OPENAI_API_KEY": "sk-abc\u00a0"})


@pytest.mark.parametrize(
    "data",
    [
        {"model": {"teacher_api_key": [KEY]}},
        {"model": {"teacher_api_key": {"key": KEY}}},
        {"model": [KEY]},
        {"policy": {"sampler_api_key": [KEY]}},
        {"policy": KEY},
    ],
)
def test_a_key_of_the_wrong_type_is_not_repeated(write, data: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(data), environ={})
    assert KEY not in str(caught.value)


# Addresses


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_the_environments_address_stands_where_the_config_names_none(write, variable: str) -> None:
    model = load_config(environ={variable: f" {REMOTE} "}).model
    assert {model.policy_api_base, model.teacher_api_base, model.embedding_api_base} == {REMOTE}
    named = load_config(
        write({"model": {"teacher_api_base": "http://named:1/v1"}}), environ={variable: REMOTE}
    ).model
    assert (named.teacher_api_base, named.policy_api_base) == ("http://named:1/v1", REMOTE)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://", "http://h:99999/v1", "http://h h/v1", "x"]
)
def test_what_is_no_address_is_refused_before_anything_is_played(
    krill: Krill, url: str, tmp_path: Path
) -> None:
    code, _, err = krill(*collected(url))
    assert code == 2 and "model.policy_api_base" in err and "is no address of a server" in err
    assert not (tmp_path / "runs" / "r").exists()


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("http://user:s3cretPASS@host:81/v1", "http://host:81/v1"),
        ("http://user:s3cret@PASS@host/v1", "http://host/v1"),
        ("https://s3cretPASS@host/v1", "https://host/v1"),
        ("https://host/v1?api_key=s3cretPASS", "https://host/v1"),
        ("https://host/v1?api-version=2&sig=s3cretPASS", "https://host/v1?api-version=2"),
    ],
)
def test_a_run_stores_an_address_without_its_secrets_and_asks_for_them_again(
    write, url: str, stored: str
) -> None:
    overrides = {"model": {"policy_api_base": url}, "env": {"url": url}, "policy": {"sampler_url": url}}
    public = public_dict(load_config(overrides=overrides, environ={}))
    assert "s3cret" not in json.dumps(public)
    assert {public["model"]["policy_api_base"], public["env"]["url"], public["policy"]["sampler_url"]} == {
        stored
    }
    again = load_config(write(public), environ={})
    assert set(again.withheld) == {"model.policy_api_base", "env.url", "policy.sampler_url"}
    assert public_dict(again)["withheld"] == public["withheld"]
    given = load_config(write(public), overrides=overrides, environ={})
    assert given.withheld == () and given.model.policy_api_base == url
    assert public_dict(given) == public
    from_environment = load_config(write(public), environ={"OPENAI_BASE_URL": url})
    assert from_environment.model.policy_api_base == url


@pytest.mark.parametrize("how", ["user", "query"])
def test_a_secret_in_an_address_reaches_the_server_and_nothing_else(
    krill: Krill, recorder: Recorder, tmp_path: Path, how: str
) -> None:
    secret = "s3cretPASSword"
    base = (
        recorder.base.replace("//", f"//me:{secret}@")
        if how == "user"
        else f"{recorder.base}?api_key={secret}&v=1"
    )
    code, out, err = krill(*collected(base))
    assert code == 0, err
    path, headers, _ = recorder.seen[0]
    if how == "user":
        assert headers["authorization"].startswith("Basic ") and path == "/v1/chat/completions"
    else:
        assert path == f"/v1/chat/completions?api_key={secret}&v=1"
    files = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert files and not [file for file in files if secret.encode() in file.read_bytes()]
    assert secret not in out + err
    # Going on, the run says what it lacks; given again, it is used.
    arguments = collected(base)
    _, out, err = krill(*arguments[:-2], "--set", "collect.episodes=2")
    assert "model.policy_api_base was given with a password or a key" in out + err
    recorder.seen.clear()
    krill(*arguments, "--set", "collect.episodes=3")
    assert recorder.seen and (secret in recorder.seen[0][0] or "authorization" in recorder.seen[0][1])


def test_an_error_shows_the_address_without_its_secrets(krill: Krill, recorder: Recorder) -> None:
    recorder.refuses_with = 403
    base = recorder.base.replace("//", "//me:s3cretPASSword@") + "?token=s3cretTOKEN"
    code, out, err = krill(*collected(base))
    assert code == 1 and "s3cret" not in out + err and "403: no such key" in err


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("localhost.evil.example", False),
        ("128.0.0.1", False),
        ("", False),
    ],
)
def test_what_counts_as_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "url", ["http://u:p/w@host/v1", "http://[u:pw@host", "u:pw@host", "http://u:p?w@host"]
)
def test_an_address_that_cannot_be_read_shows_no_password(url: str) -> None:
    assert "p/w" not in without_secrets(url) and "pw" not in without_secrets(url)
    host_of(url)


@contextmanager
def _proxies(monkeypatch: pytest.MonkeyPatch, address: str) -> Iterator[None]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, address)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense"])
def test_no_proxy_stands_between_a_machine_and_itself(
    krill: Krill, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    with _proxies(monkeypatch, proxy):
        code, _, err = krill(*collected(recorder.base))
    assert code == 0, err


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("http://me:s3cretPASSword@127.0.0.1:9", "through the proxy http://127.0.0.1:9 of the environment"),
        ("nonsense://x", "the proxy of the environment cannot be used"),
    ],
)
def test_an_error_says_which_proxy_was_between(
    krill: Krill, monkeypatch: pytest.MonkeyPatch, proxy: str, said: str
) -> None:
    with _proxies(monkeypatch, proxy):
        code, out, err = krill(*collected("http://models.invalid/v1"))
    assert code == 1 and said in err and "s3cret" not in out + err
