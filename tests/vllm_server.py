"""A server with vLLM's completions and runtime LoRA endpoints on loopback, sampling for real with a small model.

It checks each call against what a vLLM server asks for, and keeps what it saw: a breach is a line in `breaches`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from peft import PeftModel
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer


class LoraServer:
    """`fault` makes it misbehave: `500`, `refuse`, `vocabulary`, `no logprobs`."""

    def __init__(self, model: Path) -> None:
        self.base: Any = AutoModelForCausalLM.from_pretrained(model).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.fault = ""
        self.faults_left = 10**6
        self.breaches: list[str] = []
        self.loaded: list[str] = []
        """Names, in the order they came."""
        self.unloaded: list[str] = []
        self.completions: list[dict[str, Any]] = []
        self.prompts: dict[tuple[int, ...], int] = {}
        self._adapters: dict[str, Any] = {}

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )

    def _faulty(self, *names: str) -> bool:
        if self.fault in names and self.faults_left > 0:
            self.faults_left -= 1
            return True
        return False

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.breaches.append(what)

    async def load(self, request: Request) -> Response:
        body = await request.json()
        if self._faulty("refuse"):
            return _error(400, "LoRA rank 64 is greater than max_lora_rank 16.")
        name, folder = body["lora_name"], Path(body["lora_path"])
        self._expect(folder.is_absolute(), "a relative adapter path")
        self._expect(set(body) == {"lora_name", "lora_path"}, f"fields {sorted(body)}")
        if name in self._adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        config = json.loads((folder / "adapter_config.json").read_text())
        self._expect(config["peft_type"] == "LORA" and bool(config["target_modules"]), "no LoRA config")
        weights = load_file(folder / "adapter_model.safetensors")
        self._expect(
            all(".lora_A." in key or ".lora_B." in key for key in weights), "weights that are not LoRA's"
        )
        fresh = AutoModelForCausalLM.from_pretrained(self.base.name_or_path).eval()
        with warnings.catch_warnings():
            # PEFT still asks transformers for an attribute under its old name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            self._adapters[name] = PeftModel.from_pretrained(fresh, folder).eval()
        self.loaded.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self._adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        self.unloaded.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        if self._faulty("500"):
            return _error(500, "EngineCore encountered an issue.")
        model = self._adapters.get(body["model"])
        if model is None:
            self.breaches.append("sampled with an adapter that is not loaded")
            return _error(404, f"The model `{body['model']}` does not exist.")
        vocabulary = self.base.config.vocab_size
        prompt = body["prompt"]
        self._expect(bool(prompt) and all(0 <= i < vocabulary for i in prompt), "prompt ids out of range")
        self._expect(
            body["return_token_ids"] is True and body["logprobs"] == 1, "no ids or log-probabilities asked"
        )
        self._expect(
            (body["top_p"], body["top_k"], body["min_p"]) == (1.0, -1, 0.0), "a distribution with a cut"
        )
        self._expect(0 <= body["seed"] < 2**63, "a seed out of range")
        self.completions.append(body)
        ids, logprobs, reason, stop = self._sample(model, body)
        if self._faulty("vocabulary"):
            ids[0] = vocabulary + 3
        kept: Any = [] if self._faulty("no logprobs") else logprobs
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(ids) if max(ids) < vocabulary else "",
            "token_ids": ids,
            "prompt_token_ids": prompt,
            "finish_reason": reason,
            "stop_reason": stop,
            "logprobs": {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": kept},
        }
        return JSONResponse(
            {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "model": body["model"]}
        )

    @torch.inference_mode()
    def _sample(self, model: Any, body: dict[str, Any]) -> tuple[list[int], list[float], str, Any]:
        generator = torch.Generator().manual_seed(body["seed"])
        ids: list[int] = []
        logprobs: list[float] = []
        for _ in range(body["max_tokens"]):
            logits = model(input_ids=torch.tensor([[*body["prompt"], *ids]])).logits[0, -1].float()
            raw = torch.log_softmax(logits, -1)
            probabilities = torch.softmax(logits / (body["temperature"] or 1e-6), -1)
            ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
            logprobs.append(float(raw[ids[-1]]))
            if ids[-1] in body["stop_token_ids"]:
                return ids, logprobs, "stop", ids[-1]
            if any(stop in self.tokenizer.decode(ids) for stop in body["stop"]):
                return ids, logprobs, "stop", body["stop"][0]
        return ids, logprobs, "length", None


@asynccontextmanager
async def serving(server: LoraServer) -> AsyncIterator[str]:
    """The address at which the server answers."""
    running = uvicorn.Server(uvicorn.Config(server.app(), log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(running.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            await task


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)
