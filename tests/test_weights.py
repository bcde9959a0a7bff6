"""A stage is measured on the weights that are recorded for it, and says which: never on the newest there are."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from krill_tui.cli.app import run
from krill_tui.cli.options import Options
from krill_tui.cli.work import _newest_cold_start
from krill_tui.config.load import load_config
from krill_tui.engine.run_store import run_path
from krill_tui.engine.session import Session
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal
from tests.test_cli_train import SIZES


@pytest.fixture
def krill(
    tiny_model_dir: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command on small sizes: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    sizes = {**SIZES, "evaluation.episodes": 2, "rl.training_epochs": 1, "evolution.episodes": 2}
    settings = [
        f"--set={field}={value}" for field, value in {**sizes, "policy.model": tiny_model_dir}.items()
    ]

    def krill(*arguments: str) -> tuple[int, str, str]:
        code = run([*settings, *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return krill


def measured(name: str) -> dict[str, ev.Evaluated]:
    found = [e for e in read_journal(run_path(name) / "events.jsonl") if isinstance(e, ev.Evaluated)]
    return {e.stage: e for e in found}


def test_each_stage_is_measured_on_its_own_weights_whatever_was_trained_before(
    krill: Callable[..., tuple[int, str, str]], tiny_model_dir: Path
) -> None:
    model = tiny_model_dir.name
    for phase in (("collect",), ("distill",), ("sft",)):
        assert krill(*phase, "--run", "x", "--display", "none")[0] == 0
    code, _, err = krill("train", "--run", "x", "--display", "none")
    assert code == 0, err
    weights = {stage: e.weights for stage, e in measured("x").items()}
    assert weights == {"base": model, "sft": f"{model} + sft-1", "rl": f"{model} + rl-1"}
    report = (run_path("x") / "report.md").read_text(encoding="utf-8")
    assert f"- base: weights {model}\n" in report

    progress = json.loads((run_path("x") / "progress.json").read_text())
    assert (progress["sft_step"], progress["sft_total"]) == (1, 1)

    # More of the cold start would change what RL came from.
    code, _, err = krill("sft", "--run", "x", "--display", "none", "--set", "sft.epochs=2")
    assert code == 2 and "sft.epochs 1 -> 2" in err and "--fork" in err

    # More RL makes other weights: the old number is not shown for them.
    code, _, err = krill("train", "--run", "x", "--display", "none", "--set", "rl.training_epochs=2")
    assert code == 0, err
    assert measured("x")["rl"].weights == f"{model} + rl-2"

    # What is asked for by name is measured, not the run's newest.
    asked = run_path("x") / "checkpoints" / "sft-1"
    code, out, err = krill("eval", "--run", "x", "--checkpoint", str(asked), "--json")
    assert code == 0, err
    assert json.loads(out)["weights"] == f"{model} + x/sft-1"
    code, out, err = krill("eval", "--run", "x", "--json")
    assert json.loads(out)["weights"] == f"{model} + rl-2"

    # Nothing else is taken for weights that are gone.
    shutil.rmtree(asked)
    config = load_config(run_path("x") / "config.json", environ={})

    async def measure(stage: str) -> str:
        opened = await Session.open("x", config)
        try:
            opened.launch([stage])
            await opened.wait()
            return str(opened.error)
        finally:
            await opened.close()

    assert "no other weights are taken in its place" in asyncio.run(measure("evaluate-sft"))


def test_rl_starts_from_a_cold_start_that_ended_in_the_same_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def make(name: str, steps: tuple[int, int], **config: object) -> Path:
        folder = run_path(name)
        (folder / f"checkpoints/sft-{steps[0]}").mkdir(parents=True)
        (folder / f"checkpoints/sft-{steps[0]}/manifest.json").write_text("{}")
        (folder / "events.jsonl").write_text("")
        (folder / "progress.json").write_text(json.dumps({"sft_step": steps[0], "sft_total": steps[1]}))
        (folder / "config.json").write_text(load_config(overrides=config, environ={}).model_dump_json())
        return folder

    wanted = make("a", (4, 4))
    make("unfinished", (2, 4))
    make("shop", (4, 4), env={"name": "webshop"})
    make("other", (4, 4), policy={"model": "somewhere"})
    damaged = make("damaged", (4, 4))
    (damaged / "progress.json").write_text("[]")
    assert _newest_cold_start(Options()) == wanted / "checkpoints/sft-4"
