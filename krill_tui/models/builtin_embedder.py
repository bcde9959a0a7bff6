"""An embedder without a model: hashed word and character n-grams (the hashing trick)."""

from __future__ import annotations

import asyncio
import itertools
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"[^\W_]+")
# Words that say nothing about the subject would make all sentences alike.
_STOP_WORDS = frozenset(
    """
    a an and any are as at be been before by do does for from has have if in into is it its no not of off on or
    some that the their them then there they this to was were when where which with you your
    """.split()  # noqa: SIM905
)
_BLOCKING_LIMIT = 100
_WORD_WEIGHT = 2.0
_PAIR_WEIGHT = 1.0
_GRAM_WEIGHT = 0.5


class BuiltinEmbedder:
    """Words, neighbouring words and the 3- to 5-grams of words, signed into 1,024 buckets.

    It needs no network and gives the same vectors on every machine. Texts are alike when they share
    words or parts of words; meaning is not seen.
    """

    def __init__(self, dim: int = 1024) -> None:
        self.dim = dim
        self.name = f"builtin-ngrams-{dim}"

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 `[len(texts), dim]`, rows of length 1, or 0 where a text holds no word."""
        if len(texts) > _BLOCKING_LIMIT:
            return await asyncio.to_thread(self._embed, texts)
        return self._embed(texts)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        matrix = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(matrix, texts, strict=True):
            for feature, weight in _features(text).items():
                code = zlib.crc32(feature.encode("utf-8", "replace"))
                sign = 1.0 if code & 0x80000000 else -1.0
                row[code % self.dim] += sign * weight
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
        return matrix / np.where(norms > 0, norms, 1.0)


def _features(text: str) -> dict[str, float]:
    words = [word for word in _WORD.findall(text.casefold()) if word not in _STOP_WORDS]
    weights: defaultdict[str, float] = defaultdict(float)
    for word, count in Counter(words).items():
        # Square root: saying a word thrice is not three times as much.
        weights[f"w:{word}"] += _WORD_WEIGHT * count**0.5
        padded = f"<{word}>"
        grams = [padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
        for gram in grams:
            weights[f"g:{gram}"] += _GRAM_WEIGHT * (count / len(grams)) ** 0.5
    for first, second in itertools.pairwise(words):
        weights[f"p:{first} {second}"] = _PAIR_WEIGHT
    return weights
