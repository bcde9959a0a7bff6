"""The embedded model as it is shipped: its shape, its language, and that it reads what stands in its prompt."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from krill_tui.envs.alfworld.expert import usual_places
from krill_tui.paths import asset
from krill_tui.training.loading import load_model
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.sampler import Sampler

ASSETS = Path(__file__).resolve().parent.parent / "assets"
sys.path.insert(0, str(ASSETS))
# Scripts beside the package, not part of it.
tiny_drills: Any = importlib.import_module("tiny_drills")
tiny_episodes: Any = importlib.import_module("tiny_episodes")
tiny_measure: Any = importlib.import_module("tiny_measure")
tiny_purchases: Any = importlib.import_module("tiny_purchases")
train_krill_tiny: Any = importlib.import_module("train_krill_tiny")

UNSEEN = range(7_000_000, 8_000_000)


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    torch.set_num_threads(1)
    return load_model(str(asset("krill-tiny")), ModelSettings())


def most_likely(policy: PolicyModel, text: str) -> str:
    """The token after `text`."""
    ids = torch.tensor([policy.chat.encode(text)])
    with torch.no_grad():
        return policy.chat.decode([int(policy.base(input_ids=ids).logits[0, -1].argmax())])


def prompt(skills: list[tuple[str, str, int]], thing: str) -> str:
    """A turn in which the thought has begun with the name of a thing."""
    lines = "\n".join(f"{name}: {place} [gen_{number:03}]" for name, place, number in skills)
    return (
        f"<|system|>{lines}<|user|>Nothing happens.\nTask: put a {thing} in garbagecan"
        f"<|assistant|><think>{thing}:"
    )


def test_the_shipped_folder_is_small_and_within_the_promised_shape(policy: PolicyModel) -> None:
    folder = asset("krill-tiny")
    size = sum(path.stat().st_size for path in folder.iterdir())
    config = policy.base.config
    assert size < 16_000_000
    assert config.model_type == "qwen2"
    assert not list(folder.glob("*.bin"))
    assert 1_000_000 <= sum(p.numel() for p in policy.base.parameters()) <= 3_000_000
    assert (config.max_position_embeddings, config.vocab_size <= 1024) == (2048, True)


def test_every_key_of_a_skill_is_one_token(policy: PolicyModel) -> None:
    keys = [f"{key}:" for key in (*usual_places(), "clean", "heat", "cool")]
    assert [key for key in keys if len(policy.chat.encode(key)) != 1] == []
    assert max(len(policy.chat.encode(f" {thing}")) for thing in usual_places()) <= 6


def test_a_thought_gives_the_place_that_the_skill_of_the_prompt_names(policy: PolicyModel) -> None:
    things = ["mug", "book", "apple", "pen", "vase", "plate", "towel", "egg"]
    places = ["cabinet", "drawer", "fridge", "shelf", "desk", "bed", "safe", "dresser"]
    right = 0
    for shift in range(8):
        # The same things, each time elsewhere: only the prompt can tell where.
        skills = [(thing, places[(n + shift) % 8], 10 + n) for n, thing in enumerate(things)]
        for thing, place, _ in skills:
            right += most_likely(policy, prompt(skills, thing)).strip() == place
    assert right >= 58, f"{right} of 64 lookups"


def test_the_thought_quotes_the_id_that_stands_beside_the_place(policy: PolicyModel) -> None:
    skills = [("mug", "cabinet", 7), ("book", "drawer", 21), ("apple", "shelf", 33), ("pen", "desk", 45)]
    quoted = [
        most_likely(policy, f"{prompt(skills, thing)} {place} [gen_") == f"{number:03}"
        for thing, place, number in skills
    ]
    assert sum(quoted) >= 3


def test_it_takes_what_the_last_observation_shows_and_looks_for_the_rest(policy: PolicyModel) -> None:
    """Taking what it only expects to be there was what most lost games of an earlier krill-tiny had in common."""
    rng = tiny_episodes.Random(7)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(12):
        example = tiny_drills.draw_sight(rng)
        text = ""
        for message in example.messages:
            if message["role"] == "assistant":
                thought = str(message["content"]).removeprefix("<think>")
                seen = thought.startswith("take ")
                guess = most_likely(policy, f"{text}<|assistant|><think>")
                right[seen].append((guess.strip() == "take") == seen)
                text += f"<|assistant|>{message['content']}<|end|>"
            else:
                text += f"<|{message['role']}|>{message['content']}"
    for seen, hits in right.items():
        assert len(hits) >= 40
        assert sum(hits) >= 0.95 * len(hits), f"seen: {seen}, {sum(hits)} of {len(hits)}"


def test_it_does_things_in_the_order_that_the_skill_says(policy: PolicyModel) -> None:
    """Come to a station: is it to be examined first? With a lamp: does it come before the thing?"""
    rng = tiny_episodes.Random(8)
    right: dict[str, list[bool]] = {"examine": [], "treat": [], "look": []}
    for _ in range(24):
        example = tiny_drills.draw_order(rng)
        text = view = ""
        for message in example.messages:
            if message["role"] == "assistant":
                thought = str(message["content"]).removeprefix("<think>")
                guess = most_likely(policy, f"{text}<|assistant|><think>")
                kind = (
                    "look" if view.startswith("Task:") else "treat" if view.startswith("You arrive") else ""
                )
                kind = "examine" if thought.startswith("examine") else kind
                if kind:
                    right[kind].append(bool(guess.strip()) and thought.startswith(guess.strip()))
                text += f"<|assistant|>{message['content']}<|end|>"
            else:
                view = str(message["content"])
                text += f"<|{message['role']}|>{message['content']}"
    for kind, hits in right.items():
        assert len(hits) >= 20
        # It rather examines once too often.
        assert sum(hits) >= 0.6 * len(hits), f"{kind}: {sum(hits)} of {len(hits)}"
    everything = [hit for hits in right.values() for hit in hits]
    assert sum(everything) >= 0.8 * len(everything), f"{sum(everything)} of {len(everything)}"


def test_a_drill_of_looks_takes_a_thing_only_where_it_is_in_sight() -> None:
    rng = tiny_episodes.Random(4)
    absent_but_seen_before = 0
    for _ in range(20):
        example = tiny_drills.draw_sight(rng)
        earlier = ""
        for view, reply in zip(example.messages[1::2], example.messages[2::2], strict=True):
            said, _, task = str(view["content"]).partition("\nTask: ")
            visible = set(re.findall(r"\ba ([a-z]+) \d", said))
            wanted = next(thing for thing in usual_places() if f" {thing} " in f" {task} ".replace(".", " "))
            takes = str(reply["content"]).startswith("<think>take ")
            assert takes == (wanted in visible)
            if takes:
                name = re.search(r"<action>take ([a-z]+ \d+) from", str(reply["content"]))
                assert name and f"a {name[1]}" in said
            absent_but_seen_before += not takes and f"a {wanted} " in earlier
            earlier += said
    assert absent_but_seen_before >= 20


def test_unconstrained_replies_keep_the_format_and_mostly_name_what_is_possible(policy: PolicyModel) -> None:
    facts: dict[str, Any] = tiny_measure.play(
        Sampler(policy), UNSEEN, "right", 24, constrained=False, limit=12
    )
    assert facts["unparsed"] <= 0.05
    assert facts["invalid"] <= 0.25


def test_it_is_a_beginner_who_wins_some_unseen_worlds_and_loses_most(policy: PolicyModel) -> None:
    facts: dict[str, Any] = tiny_measure.play(Sampler(policy), UNSEEN, "right", 24)
    assert 5 <= facts["success"] <= 60
    assert facts["invalid"] == 0


def test_drawing_the_same_seed_twice_gives_the_same_training_text() -> None:
    def text() -> list[Any]:
        rng = tiny_episodes.Random(5)
        episode = tiny_episodes.draw_episode(
            rng, UNSEEN, tiny_episodes.draw_modes(rng), tiny_episodes.BEGINNER
        )
        return [*episode.messages, *tiny_drills.draw_drill(rng).messages]

    assert text() == text()


def test_an_expert_episode_quotes_the_right_skill_for_what_the_task_needs() -> None:
    rng = tiny_episodes.Random(1)
    lookups = 0
    for _ in range(20):
        example = tiny_episodes.draw_episode(rng, UNSEEN, tiny_measure.asked("right"), 0.0)
        system = str(example.messages[0]["content"]).splitlines()
        quotes = [re.sub(r" \(.*\)", "", line) for line in system]
        for message, kind in zip(example.messages, example.kinds, strict=True):
            if kind == "lookup":
                lookups += 1
                thought = str(message["content"]).partition("</think>")[0].removeprefix("<think>")
                assert thought in quotes
    assert lookups >= 20


def test_a_purchase_fits_into_the_context_and_shows_pages_in_lower_case() -> None:
    rng = tiny_episodes.Random(3)
    for _ in range(5):
        example = tiny_purchases.draw_purchase(rng, range(7_000_000, 7_000_001))
        pages = [str(m["content"]) for m in example.messages if m["role"] == "user"]
        assert len(example.messages) >= 7
        for page in pages:
            said, _, task = page.partition("\nTask: ")
            assert task and said == said.lower() and "[sep]" not in said


def test_training_writes_a_model_that_resuming_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_krill_tiny.Run, "check", lambda self: None)
    whole = train_krill_tiny.corpus
    monkeypatch.setattr(train_krill_tiny, "corpus", lambda rng: whole(rng, episodes=12))
    script = "train_krill_tiny.py"
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    monkeypatch.setattr(sys, "argv", [script, "--out", first, "--minutes", "0.02", "--batch", "300"])
    train_krill_tiny.main()
    again = ["--resume", first, "--stage", "weak", "--minutes", "0.01", "--batch", "300"]
    monkeypatch.setattr(sys, "argv", [script, "--out", second, *again])
    train_krill_tiny.main()
    before, after = (json.loads((Path(f) / "state.json").read_text()) for f in (first, second))
    assert before["stage"] == "base" and after["stage"] == "weak"
    assert after["step"] > before["step"] > 0
    kept = [(Path(f) / s / "tokenizer.json").read_bytes() for f, s in ((first, "base"), (second, "weak"))]
    assert kept[0] == kept[1]
    load_model(str(tmp_path / "second" / "weak"), ModelSettings())
    capsys.readouterr()


def test_a_beginner_mostly_ignores_the_skills_of_the_prompt() -> None:
    def quoting(heed: float) -> int:
        rng = tiny_episodes.Random(2)
        draw = (
            tiny_episodes.draw_episode(rng, UNSEEN, tiny_measure.asked("right"), 0.0, heed=heed)
            for _ in range(40)
        )
        return sum("lookup" in example.kinds for example in draw)

    assert quoting(1.0) == 40
    assert quoting(0.0) == 0
    assert quoting(tiny_episodes.HEED) < quoting(0.4) < 30


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_train_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, start, out = "train_krill_tiny.py", tmp_path / "start", tmp_path / "out"
    start.mkdir()
    # A training goes on from any checkpoint: here from the shipped weights with a fresh optimizer.
    (start / "base").symlink_to(asset("krill-tiny"))
    (start / "state.json").write_text('{"stage": "base", "step": 0, "tokens": 0, "seconds": 0.0}')
    save_file({}, start / "optimizer.safetensors")
    options = f"--resume {start} --minutes 0.12 --batch 256 --processes 2 --lr 1e-4"
    monkeypatch.setattr(sys, "argv", [script, "--out", str(out), *options.split()])
    train_krill_tiny.main()
    state = json.loads((out / "state.json").read_text())
    # The tokens of both are counted; the first alone took about 256 a step.
    assert state["tokens"] > 1.3 * 256 * state["step"] > 0
    assert state["seconds"] >= train_krill_tiny.AVERAGE_EVERY
    policy = load_model(str(out / "base"), ModelSettings())
    assert all(bool(torch.isfinite(p).all()) for p in policy.base.parameters())
    capsys.readouterr()
