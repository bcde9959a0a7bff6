"""BM25 over a catalogue, ranked as the genuine shop's Lucene index ranks (WebShop specification A6).

Terms come from Lucene's English analysis: Unicode word breaks, possessives, stop words, Porter stems.
A document's length counts exactly in the average but only to four binary digits in its own score.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from krill_tui.envs.webshop.porter import stem

_K1 = 0.9
_B = 0.4
_EXACT_LENGTHS = 24
"""Lengths are kept exactly below 24, and above as 24 plus a number of four significant binary digits."""
_MAX_TOKEN = 255
"""Lucene cuts longer runs into pieces."""

_LUCENE_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they
this to was will with
"""
_STOP_WORDS = frozenset(_LUCENE_STOP_WORDS.split())
_POSSESSIVE = re.compile(r"['’＇]s$")

_MARKS = r"\u00ad\u0300-\u036f\u200c\u200d\ufe00-\ufe0f"
"""Marks that belong to the letter before them."""


def _word_pattern(run: str) -> str:
    """Runs of letters, digits and `_`; some marks also join two letters, or two digits."""
    between_letters = r"(?<=[^\W\d_])[.:'‘’․﹒＇·](?=[^\W\d_])"
    between_digits = r"(?<=\d)[.,;'’](?=\d)"
    return f"{run}(?:(?:{between_letters}|{between_digits}){run})*"


_ASCII_TOKEN = re.compile(_word_pattern(r"\w+"), re.ASCII)
_TOKEN = re.compile(_word_pattern(rf"\w[\w{_MARKS}]*") + r"|[©®™\u2600-\u27bf\U0001f300-\U0001faff]")
_NUMERAL = re.compile(
    r"[²³¹¼-¾\u2070-\u2079\u2080-\u2089\u2150-\u215f\u2460-\u249b\u24ea-\u24ff\u2776-\u2793]"
)
"""Numbers that are no digits: no part of any word."""
_IDEOGRAPH = re.compile(r"[\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")


def tokens(text: str) -> list[str]:
    """The words of a lower-cased text, before stop words and stems."""
    if text.isascii():
        return _ASCII_TOKEN.findall(text)
    text = _IDEOGRAPH.sub(r" \g<0> ", _NUMERAL.sub(" ", text))
    return _TOKEN.findall(text)


def _terms(token: str) -> list[str]:
    """What is indexed for one token: usually one term; none for a stop word."""
    if len(token) > _MAX_TOKEN:
        pieces = [token[start : start + _MAX_TOKEN] for start in range(0, len(token), _MAX_TOKEN)]
        return [term for piece in pieces for term in _terms(piece)]
    word = _POSSESSIVE.sub("", token)
    return [] if word in _STOP_WORDS or not word.strip("_") else [stem(word)]


def analyze(text: str) -> list[str]:
    """The terms of a text, in order, repeats kept."""
    return [term for token in tokens(text.lower()) for term in _terms(token)]


class _Vocabulary(dict[str, list[int]]):
    """Token -> numbers of its terms; each token is analysed once."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, int] = {}

    def __missing__(self, token: str) -> list[int]:
        numbers = [self.terms.setdefault(term, len(self.terms)) for term in _terms(token)]
        self[token] = numbers
        return numbers


def _stored_lengths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Document lengths as one byte keeps them."""
    rest = np.maximum(lengths - _EXACT_LENGTHS, 0)
    shift = np.maximum(np.frexp(rest)[1] - 4, 0)
    return np.where(lengths < _EXACT_LENGTHS, lengths, _EXACT_LENGTHS + (rest >> shift << shift))


class SearchIndex:
    """An inverted index of N documents: for each term its documents and what each adds to their score."""

    def __init__(self, documents: Iterable[str]) -> None:
        vocabulary = _Vocabulary()
        numbers, counts = array("i"), array("i")
        for document in documents:
            before = len(numbers)
            for token in tokens(document.lower()):
                numbers.extend(vocabulary[token])
            counts.append(len(numbers) - before)
        self._terms = vocabulary.terms
        lengths = np.array(counts, dtype=np.int64)
        self.size = len(lengths)
        self._build(np.array(numbers, dtype=np.int64), lengths)

    def _build(self, numbers: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        documents = np.repeat(np.arange(self.size), lengths)
        keys, frequencies = np.unique(numbers * max(self.size, 1) + documents, return_counts=True)
        terms, self._documents = np.divmod(keys, max(self.size, 1))
        document_counts = np.bincount(terms, minlength=len(self._terms))
        self._starts = np.concatenate(([0], np.cumsum(document_counts)))
        indexed = np.count_nonzero(lengths)
        average = lengths.sum() / indexed if indexed else 1.0
        idf = np.log(1 + (indexed - document_counts + 0.5) / (document_counts + 0.5))
        norms = _K1 * (1 - _B + _B * _stored_lengths(lengths) / average)
        self._scores = idf[terms] * frequencies / (frequencies + norms[self._documents])

    def search(self, query: str, limit: int = 50) -> list[tuple[int, float]]:
        """(document, score) of the best documents with a score above 0; ties in document order."""
        totals = np.zeros(self.size)
        for term, count in Counter(analyze(query)).items():
            number = self._terms.get(term)
            if number is not None:
                postings = slice(self._starts[number], self._starts[number + 1])
                totals[self._documents[postings]] += count * self._scores[postings]
        # Lucene compares single-precision sums, so that differences beyond that are ties.
        scores = totals.astype(np.float32)
        found = np.flatnonzero(scores > 0)
        if len(found) > limit:
            least = np.partition(scores[found], len(found) - limit)[len(found) - limit]
            found = found[scores[found] >= least]
        best = found[np.argsort(-scores[found], kind="stable")][:limit]
        return [(int(document), float(scores[document])) for document in best]
