"""Constrained replies: a free thought, then one of the admissible actions, chosen along a token trie."""

from __future__ import annotations

from collections.abc import Sequence

from krill_tui.training.tokens import ChatTokenizer

THINK_END, ACTION, ACTION_END = "</think>", "<action>", "</action>"

Trie = dict[int, "Trie"]


def build_trie(sequences: Sequence[tuple[int, ...]]) -> Trie:
    """Nested dictionaries from token to what may follow; a leaf is empty."""
    root: Trie = {}
    for ids in sequences:
        node = root
        for token in ids:
            node = node.setdefault(token, {})
    return root


class ReplyState:
    """One reply while it grows: what may come next, and whether it is complete.

    Free: any token, until the end of turn, `</action>` or `max_tokens`; after `</action>` the end of turn is forced.
    Constrained: the thought is free, but a draw that would end the turn is replaced by `</think>`, which also comes
    by force when only an action fits; then follows `<action>`, one of `admissible`, `</action>`, end of turn.
    """

    def __init__(
        self, chat: ChatTokenizer, admissible: Sequence[str], constrained: bool, max_tokens: int
    ) -> None:
        self.ids: list[int] = []
        self.allowed: list[tuple[int, ...]] = []
        self.logprobs: list[float] = []
        self.done = False
        self.complete = True
        """False when `max_tokens` cut it."""
        self.ended = False
        """The last id is the end-of-turn token."""
        self._chat = chat
        self._max_tokens = max_tokens
        self._actions = tuple(dict.fromkeys(admissible)) if constrained else ()
        self._text = ""
        self._forced: list[int] = []
        self._trie: Trie | None = None
        self._action_budget = 0
        if self._actions:
            close = len(chat.encode(chat.format.lead + THINK_END))
            longest = max(len(chat.encode(f"{ACTION}{action}{ACTION_END}")) for action in self._actions)
            # Two more: the end of turn, and a token that may straddle "</think>" and "<action>".
            self._action_budget = close + longest + 2
        self.room = max(max_tokens, self._action_budget) + 1
        """Tokens that the reply may take at most."""
        if self._actions:
            self._force_action_when_full()

    def choices(self) -> tuple[int, ...]:
        """Ids the next token is chosen among; () is all of them."""
        if self._forced:
            return (self._forced[0],)
        return tuple(self._trie) if self._trie is not None else ()

    def forced(self) -> bool:
        """Whether the next token is known without asking the model."""
        return bool(self._forced) or (self._trie is not None and len(self._trie) == 1)

    def push_forced(self) -> None:
        """Append every token that is known without asking the model."""
        while not self.done and self.forced():
            choices = self.choices()
            self.push(choices[0], 0.0)

    def push(self, token: int, logprob: float) -> None:
        """Append a drawn or forced token with its log-probability under the distribution it was drawn from."""
        choices = self.choices()
        if self._actions and not choices and token in self._chat.control_ids:
            self._force_thought_end()
            return
        self.ids.append(token)
        self.allowed.append(choices)
        self.logprobs.append(logprob)
        self._text += self._chat.piece(token)
        if self._forced:
            self._forced.pop(0)
        elif self._trie is not None:
            self._trie = self._trie[token]
        self._advance(token)

    def _advance(self, token: int) -> None:
        if token in self._chat.stop_ids:
            self.done = True
            self.ended = token == self._chat.end_of_turn
        elif self._forced:
            return
        elif self._trie is not None:
            if not self._trie:
                self._forced = [self._chat.end_of_turn]
        elif self._actions:
            self._enter_action()
            if self._trie is None:
                self._force_action_when_full()
        elif self._text.rstrip().endswith(ACTION_END):
            self._forced = [self._chat.end_of_turn]
        elif len(self.ids) >= self._max_tokens:
            self.done, self.complete = True, False

    def _enter_action(self) -> None:
        """Build the trie as soon as the thought is closed, or `<action>` stands there without a thought."""
        said = self._open_action()
        if said is None:
            return
        wanted = [f"{ACTION}{action}{ACTION_END}" for action in self._actions]
        rests = [action[len(said) :] for action in wanted if action.startswith(said)]
        # A token that straddles the border wrote something no action begins with: close the thought again.
        if rests:
            self._trie = build_trie([self._chat.encode(rest) for rest in rests])
        else:
            self._force_thought_end()

    def _open_action(self) -> str | None:
        """What stands of the action element so far, None while the thought is open."""
        _, closed, rest = self._text.rpartition(THINK_END)
        if closed:
            return rest.lstrip()
        start = self._text.find(ACTION)
        return self._text[start:] if start >= 0 else None

    def _force_action_when_full(self) -> None:
        if len(self.ids) + self._action_budget >= self._max_tokens:
            self._force_thought_end()

    def _force_thought_end(self) -> None:
        """Close the thought and open the action in the tokens that SFT has for both: they may share one (`><`)."""
        start = THINK_END if self.ids else self._chat.format.lead + THINK_END
        wanted = [f"{start}{ACTION}{action}{ACTION_END}" for action in self._actions]
        self._trie = build_trie([self._chat.encode(text) for text in wanted])
