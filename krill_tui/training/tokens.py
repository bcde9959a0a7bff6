"""From conversations to the one growing token sequence of an episode.

Sampling, SFT and RL build sequences here and nowhere else. A sequence alternates context (template, system,
observations) and the policy's replies; a reply ends with the template's end-of-turn token, which belongs to the policy.
A reply's sampled ids stay as they are and are never tokenized again.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from krill_tui.errors import ModelError
from krill_tui.models.base import Message
from krill_tui.training.template import find_format
from krill_tui.training.tiny import FORMAT_TOKENS

THINK, THINK_END = "<think>", "</think>"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""`name` or `owner/name`; anything else can only be a path."""
_FRAME_TOKEN = re.compile(r"(?!</?think>|</?action>)[<\[].+[>\]]")


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """A whole conversation as tokens."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    """1 on the assistant's tokens, its end-of-turn tokens included; 0 on the first token of all."""
    allowed: tuple[tuple[int, ...], ...] | None = None
    """As `EpisodeTokens.allowed`."""


def load_tokenizer(folder: str | Path) -> Any:
    """Read a Hugging Face tokenizer with a chat template.

    Raises:
        ModelError: there is none, or it has no chat template.
    """
    here = Path(folder).is_dir()
    if not here and not _HUB_NAME.fullmatch(str(folder)):
        raise ModelError(f"there is no model folder {folder}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        if here:
            raise ModelError(f"no tokenizer in {folder}: {_one_line(error)}") from error
        raise ModelError(
            f"there is no folder {folder}, and no model of that name could be fetched from Hugging Face",
            hint="name a folder, or check the name and the network",
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer in {folder} has no chat template", hint="use an instruct model")
    return tokenizer


class ChatTokenizer:
    """A tokenizer and its chat template, as functions from messages to ids."""

    def __init__(self, tokenizer: Any, date: datetime.date | None = None) -> None:
        """`tokenizer`: any Hugging Face tokenizer with a chat template; `date`: what a template that writes the date
        is told, today where it is None.

        Raises:
            ModelRefusedError: episodes cannot be one growing sequence with its template.
        """
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        special = {i: str(t) for i, t in added if t.special and str(t) not in FORMAT_TOKENS}
        self.format = find_format(tokenizer, tuple(special.values()), date or datetime.date.today())
        """What the template does around a reply."""
        # Some tokenizers do not call their template's tokens special, as DeepSeek's <｜User｜>.
        frame = self._frame()
        self._control = special | {
            i: str(t) for i, t in added if _FRAME_TOKEN.fullmatch(str(t)) and str(t) in frame
        }
        self._cache: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[int, str] = {}
        self.end_of_turn = next(i for i, text in special.items() if text == self.format.end)
        # Where words carry their blank, a text of its own gets one, and loses it when it is decoded: then both are
        # done behind a control token.
        alone, behind = self._encode("look look"), self._encode(f"{self.format.end}look look")
        self._encodes_behind = behind[:1] == (self.end_of_turn,) and behind[1:] != alone
        self._decodes_behind = any(self._decode_behind([i]) != self._decode([i]) for i in alone)
        stops = {self.end_of_turn, tokenizer.eos_token_id} - {None}
        self.stop_ids: frozenset[int] = frozenset(stops)
        """Ids that end a reply when they are sampled."""
        self.control_ids: frozenset[int] = frozenset(self._control) | self.stop_ids
        """Ids that never belong to a reply's text."""

    def context(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids from the start of the sequence up to where the policy speaks.

        `messages` may hold earlier assistant turns: they are tokenized from their text.
        """
        tokens = self.conversation(messages)
        if messages[-1]["role"] == "assistant":
            raise ModelError("the last message of a conversation to continue must be the user's")
        return tokens.ids

    def next_context(self, messages: Sequence[Message], *, ended: bool) -> tuple[int, ...]:
        """Ids between a reply and the next one, for the new `messages` (no assistant among them).

        `ended`: the reply's last id was the end-of-turn token; otherwise that token comes first here.
        """
        ids = self._turn_ids(messages)
        return ids if ended else (self.end_of_turn, *ids)

    def conversation(self, messages: Sequence[Message]) -> MaskedTokens:
        """A conversation as ids and mask; after a last message of the user's the template opens the policy's turn."""
        ids: list[int] = []
        mask: list[int] = []
        context: list[Message] = []
        first = True
        for message in messages:
            if message["role"] != "assistant":
                context.append(message)
                continue
            opening = self._first_ids(context) if first else self._turn_ids(context)
            reply = (*self.reply_ids(message["content"]), self.end_of_turn)
            ids += [*opening, *reply]
            mask += [0] * len(opening) + [1] * len(reply)
            context, first = [], False
        if context:
            opening = self._first_ids(context) if first else self._turn_ids(context)
            ids += opening
            mask += [0] * len(opening)
        return MaskedTokens(tuple(ids), tuple(mask))

    def reply_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a reply's text: what the template has written of it already is left out."""
        form = self.format
        text = self.plain(text)
        if form.opened:
            if text.startswith(form.opened):
                text = text[len(form.opened) :]
            elif text.startswith(THINK):
                text = text[len(THINK) :]
            else:
                text = f"{THINK_END}{text}"
        return self.encode(form.lead + text)

    def reply_text(self, ids: Iterable[int]) -> str:
        """Text of a reply, with what the template has written of it."""
        return self.format.opened + self.decode(ids).removeprefix(self.format.lead)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text, without the tokenizer's own additions; remembered, since actions and skills come back."""
        ids = self._cache.get(text)
        if ids is None:
            if len(self._cache) > 50_000:
                self._cache.clear()
            ids = self._cache[text] = (
                self._encode_behind(text) if self._encodes_behind else self._encode(text)
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: control tokens left out, format tokens such as <think> kept."""
        kept = [i for i in ids if i not in self.control_ids]
        return self._decode_behind(kept) if self._decodes_behind else self._decode(kept)

    def piece(self, token: int) -> str:
        """Text of one token, "" for control tokens; broken characters where a character spans tokens."""
        text = self._pieces.get(token)
        if text is None:
            text = self._pieces[token] = self.decode([token])
        return text

    def plain(self, content: str) -> str:
        """`content` with control tokens spelled out of their meaning: text of a world never becomes template."""
        for token in self._control.values():
            if token in content:
                content = content.replace(token, f"{token[0]} {token[1:]}")
        return content

    def _first_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self._encode(self.format.prompt(self._harmless(messages)))

    def _turn_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encode(self.format.after_reply(self._harmless(messages)))

    def _harmless(self, messages: Sequence[Message]) -> list[Message]:
        return [{"role": message["role"], "content": self.plain(message["content"])} for message in messages]

    def _frame(self) -> str:
        """What the template writes around a first and a later turn."""
        start: list[Message] = [{"role": "system", "content": "."}, {"role": "user", "content": "."}]
        return self.format.prompt(start) + self.format.after_reply(start[1:])

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _encode_behind(self, text: str) -> tuple[int, ...]:
        return self._encode(self.format.end + text)[1:]

    def _decode_behind(self, ids: Sequence[int]) -> str:
        end = (self.end_of_turn,)
        return self._decode([*end, *ids])[len(self._decode(end)) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
