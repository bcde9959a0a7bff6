"""A chat model whose answers survive a crash: asked the same again, it answers from its file."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path

from krill_tui.io.jsonl import JsonLines, read_lines
from krill_tui.models.base import ChatModel, ChatReply, ChatUsage, Finish, Message


class RememberingChat:
    """Wraps a `ChatModel`; every paid answer is appended to `path` before it is used.

    After a restart the same questions get the recorded answers in their order, each once, so a broken-off
    distillation goes on without paying twice, and a question that is asked again later is asked for real.
    """

    def __init__(self, chat: ChatModel, path: Path) -> None:
        self._chat = chat
        self._path = path
        self.name = chat.name
        self._known: defaultdict[str, deque[ChatReply]] = defaultdict(deque)
        for key, reply in read_lines(path, parse_reply_line, "a teacher's reply"):
            self._known[key].append(reply)

    async def complete(
        self, messages: Sequence[Message], *, temperature: float | None = None, max_tokens: int | None = None
    ) -> ChatReply:
        key = _key(self.name, messages, temperature)
        if self._known[key]:
            return self._known[key].popleft()
        reply = await self._chat.complete(messages, temperature=temperature, max_tokens=max_tokens)
        entry = {
            "key": key,
            "text": reply.text,
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "finish": reply.finish,
            "thought": reply.thought,
            "refusal": reply.refusal,
        }
        file = JsonLines(self._path, checked=True)
        try:
            file.append(json.dumps(entry).encode())
        finally:
            file.close()
        return reply

    async def close(self) -> None:
        await self._chat.close()


def _key(name: str, messages: Sequence[Message], temperature: float | None) -> str:
    text = json.dumps([name, list(messages), temperature], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_reply_line(line: bytes) -> tuple[str, ChatReply]:
    entry = json.loads(line)
    usage = ChatUsage(entry["prompt_tokens"], entry["completion_tokens"])
    # Files of earlier versions hold the text alone.
    finish: Finish = entry.get("finish", "stop")
    thought, refusal = entry.get("thought", ""), entry.get("refusal", "")
    return str(entry["key"]), ChatReply(entry["text"], usage, thought=thought, finish=finish, refusal=refusal)
