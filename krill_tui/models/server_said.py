"""What a model server said, and what we do about it: one table for policy, teacher, embeddings and sampler.

Pure: from status, headers and body, or from the exception of a call, to a `Said`. The wordings are those of OpenAI,
vLLM, SGLang, llama.cpp, Ollama, TGI, Anthropic, Gemini, Mistral and the proxies before them.

| kind | what we do |
|---|---|
| busy | may pass: wait as asked, else back off, and ask again |
| context | the conversation is too long: ends the episode by `context limit`; asked again with fewer tokens if that fits |
| parameter | left out, renamed or bound from now on, and asked again at once |
| system | the system text begins the first user message from now on |
| empty | an empty system message is left out from now on |
| batch | half as many texts in a call from now on |
| filtered | a filter refused this prompt: this call has no answer |
| refused | this call is wrong: its error, at once |
| denied | no call can succeed (key, quota, address, model): its error, at once |
"""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

from krill_tui.io.text import one_line

Kind = Literal["busy", "context", "parameter", "system", "empty", "batch", "filtered", "refused", "denied"]

LONGEST_WORDS = 300
"""Characters of a server's words that an error repeats."""
_READ = 20_000
"""Characters of a refusal's body that are looked at."""
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Said:
    """One refusal or fault, understood."""

    kind: Kind
    what: str
    """What happened, in one line, with the server's own words."""
    status: int = 0
    """Of HTTP; 0 where there was no answer."""
    wait: float | None = None
    """Seconds the server asked to wait."""
    parameter: str = ""
    """The one that was refused, as it was sent."""
    bound: float | None = None
    """The nearest value the server would take, where it named one."""
    room: int | None = None
    """Tokens left for a reply, where the prompt alone fits."""
    unreachable: bool = False
    """Nobody is there, or only to say that the service is out of order."""


OPTIONAL = frozenset(
    [
        "temperature",
        "max_tokens",
        "max_completion_tokens",
        "encoding_format",
        "response_format",
        "seed",
        "stop",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "logprobs",
        "stream",
    ]
)
"""Parameters that a call can do without."""

_CONTEXT_CODES = frozenset(
    [
        "context_length_exceeded",
        "exceed_context_size_error",
        "context_window_exceeded",
        "context_window_exceeded_error",
        "model_context_window_exceeded",
        "contextwindowexceedederror",
        "prompt_too_long",
        "input_too_long",
        "string_above_max_length",
        "request_too_large",
        "1261",
    ]
)
_CONTEXT = re.compile(
    r"context[ _-]?(?:length|window|size|limit)|max_model_len|maximum model length|\bn_ctx\b"
    r"|(?:prompt|input|request|messages?|conversation|sequence)\b.{0,40}\btoo (?:long|large)(?! to process)"
    r"|(?:prompt|input|inputs?`?|tokens?|request)\b.{0,60}\bexceeds?\b.{0,40}\b(?:max|limit|context|length|window|token)"
    r"|(?:prompt|input|total)\b.{0,40}tokens?\b.{0,40}(?:cannot|must not|can't) exceed"
    r"|(?:input|inputs`?|prompt).{0,60}\b(?:longer|greater|larger|more) than\b.{0,40}\b(?:max|context|length|window|limit|model)"
    r"|`?inputs`?.{0,20}must have less than \d+ tokens|`?inputs`? tokens \+ `?max_new_tokens`?"
    r"|maximum (?:prompt|input|sequence) length|prompt exceeds max length|exceeded model token limit"
    r"|range of input length|reduce the length of (?:the |your )?(?:messages|prompt|input)"
    r"|max_tokens must be at least 1, got -\d|too many (?:input )?tokens: |input token count",
    re.IGNORECASE,
)
_TOO_LARGE_FOR_LIMIT = re.compile(r"request too large", re.IGNORECASE)
_QUOTA_CODES = frozenset(
    [
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_balance",
        "insufficient_credits",
        "credits_exhausted",
        "quota_exhausted",
        "access_terminated",
    ]
)
_QUOTA = re.compile(
    r"exceeded your current quota|check your plan and billing|credit balance is too low|billing (?:hard )?limit"
    r"|insufficient (?:quota|balance|credits?|funds)|out of credits|payment required|subscription (?:has )?(?:expired|ended)",
    re.IGNORECASE,
)
_FILTER_CODES = frozenset(
    ["content_filter", "content_policy_violation", "responsibleaipolicyviolation", "data_inspection_failed"]
)
_FILTER = re.compile(r"content management policy|content filter|content policy|safety system", re.IGNORECASE)
_BATCH = re.compile(r"too large to process|batch size|too many (?:inputs?|texts?)", re.IGNORECASE)
_EMPTY = re.compile(r"\bempty\b|non-?empty|non-whitespace|at least 1 char|too_short", re.IGNORECASE)
_NO_SYSTEM = re.compile(
    r"system[ _](?:role|message|prompt|instruction)s?\b.{0,60}\b(?:not|n't|un|only|invalid|disallow)"
    r"|(?:not|n't|un)\w* (?:support|allow|accept|enabl|permit)\w*.{0,40}\bsystem\b"
    r"|developer instruction is not enabled|only (?:the )?[`'\"]?user[`'\"]?,?.{0,12}assistant"
    r"|roles must alternate|(?:unexpected|invalid|unknown|unsupported) (?:message )?role.{0,20}system"
    r"|['\"`]system['\"`].{0,60}\b(?:not|un|invalid|only)|expected ['\"`]?user['\"`]? or ['\"`]?assistant"
    r"|role ['\"`]?system['\"`]?.{0,30}\b(?:not|n't|un|invalid)",
    re.IGNORECASE,
)
_NOT_TAKEN = re.compile(
    r"unsupported|not support|n't support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|forbidden|invalid"
    r"|extra (?:inputs|fields)|deprecated|not (?:a )?valid|must be|should be|too (?:large|small|high|low)|at most|at least"
    r"|out of range|not available|cannot be|only the default|not implemented",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"at most|at least|up to|between|range|less than|greater than|smaller|larger|maximum|minimum|max\b|min\b|<=|>=|≤|≥"
    r"|too (?:large|small|high|low)|exceed|\[\s*\d",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.-])\d{1,9}(?:\.\d{1,6})?(?![\w-]|\.\d)")
_POSITIVE = re.compile(r"positive|greater than 0|> ?0(?![.\d])", re.IGNORECASE)
_SMALLEST_TEMPERATURE = 0.01
_LIMIT_AND_PROMPT = (
    re.compile(
        r"maximum context length is (\d{1,9}) tokens.{0,120}?\((\d{1,9}) in (?:the|your) (?:messages|prompt)",
        re.IGNORECASE,
    ),
    re.compile(
        r"maximum context length is (\d{1,9}) tokens.{0,60}?(?:request|prompt) (?:has|contains) (\d{1,9}) input tokens",
        re.IGNORECASE,
    ),
    re.compile(r"must be <= (\d{1,9})\. Given: (\d{1,9}) `?inputs`? tokens", re.IGNORECASE),
)
_TRY_AGAIN = re.compile(
    r"(?:try again|retry|available|resets?) (?:in|after) ((?:\d{1,9}(?:\.\d{1,6})? ?"
    r"(?:ms|milliseconds?|h(?:ours?|rs?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)?[ ,]{0,2}){1,4})",
    re.IGNORECASE,
)
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?(ms|milli|h|m|s)?", re.IGNORECASE)
_UNITS = {"ms": 0.001, "milli": 0.001, "h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}

_PASSING = frozenset((408, 409, 423, 425, 429))
_DENIED = frozenset((401, 402, 403, 404, 405, 407, 410, 451, 501))


def read_refusal(
    status: int, headers: Mapping[str, str], body: bytes, sent: Mapping[str, object], *, now: float
) -> Said:
    """What an answer that is none says: an error status, or status 200 with an error in it.

    `sent` is the call's body, `now` Unix seconds (a server may name the time to come back at).
    """
    text = body[: _READ * 4].decode("utf-8", "replace")[:_READ]
    answer = _parsed(text)
    words = one_line(_words(answer) or ("" if answer is not None else _bare(text)), limit=LONGEST_WORDS * 4)
    codes = frozenset(_codes(answer))
    if status < 400:
        status = next((int(c) for c in sorted(codes) if re.fullmatch(r"[45]\d\d", c)), 500)
    verb = "answered" if status in _PASSING or status >= 500 else "refused with"
    shown = one_line(words, limit=LONGEST_WORDS)
    what = f"the endpoint {verb} {status}" + (f": {shown}" if shown else "")
    wait = asked_wait(headers, answer, words, now)
    parameter = _refused_parameter(status, answer, words, sent)

    def said(kind: Kind, **more: object) -> Said:
        return Said(kind, what, status, wait, **more)  # pyright: ignore[reportArgumentType]

    if status == 429 or "rate_limit_exceeded" in codes:
        if _TOO_LARGE_FOR_LIMIT.search(words):
            return said("context")
        spent = bool(codes & _QUOTA_CODES) or (wait is None and bool(_QUOTA.search(words)))
        return said("denied") if spent else said("busy", unreachable=True)
    if status in (401, 403, 407):
        return said("denied")
    if codes & _FILTER_CODES or (status in (400, 422) and _FILTER.search(words)):
        return said("filtered")
    if "messages" in sent or "prompt" in sent:
        overflow = bool(codes & _CONTEXT_CODES or status == 413 or _has_key(answer, "n_ctx"))
        if overflow or (not parameter and _CONTEXT.search(words)) or _room(words) is not None:
            return said("context", room=_room(words))
    if status == 402 or codes & _QUOTA_CODES or _QUOTA.search(words):
        return said("denied")
    if _has_system(sent) and _NO_SYSTEM.search(words):
        return said("system")
    if _has_system(sent, empty=True) and status in (400, 422, 500) and _EMPTY.search(words):
        return said("empty")
    if parameter:
        return said("parameter", parameter=parameter, bound=_bound(parameter, words, sent))
    if status in _DENIED:
        return said("denied")
    texts = sent.get("input")
    if isinstance(texts, list) and len(texts) > 1 and (status in (400, 413, 422) or _BATCH.search(words)):
        return said("batch")
    if status in _PASSING or status >= 500:
        return said("busy", unreachable=status >= 500)
    return said("refused")


def read_failure(error: BaseException, seconds: float) -> Said:
    """What went wrong where there was no answer: refused, not found, no trust, too slow, broken off.

    `seconds` is the limit of a call.
    """
    chain = list(_chain(error))
    tls = next((e for e in chain if isinstance(e, ssl.SSLError)), None)
    text = " ".join(str(e) for e in chain)
    if tls is not None or "CERTIFICATE_VERIFY_FAILED" in text:
        reason = getattr(tls, "verify_message", "") or getattr(tls, "reason", "") or "the handshake failed"
        untrusted = isinstance(tls, ssl.SSLCertVerificationError)
        said = "its certificate is not trusted" if untrusted else "no TLS is spoken there"
        return Said("denied", f"{said}: {one_line(str(reason), limit=120).lower().replace('_', ' ')}")
    if any(isinstance(e, socket.gaierror) for e in chain) or "Name or service not known" in text:
        return Said("busy", "the host's name cannot be resolved (DNS)", unreachable=True)
    names = {type(e).__name__ for e in chain}
    if "ProxyError" in names:
        return Said("busy", f"the proxy refused: {one_line(str(error), limit=120)}", unreachable=True)
    if any(isinstance(e, ConnectionRefusedError) for e in chain) or "All connection attempts failed" in text:
        return Said("busy", "the connection was refused: nobody listens there", unreachable=True)
    if "ConnectTimeout" in names:
        return Said("busy", f"no connection within {seconds:g} s", unreachable=True)
    if any(isinstance(e, TimeoutError) for e in chain) or names & {
        "ReadTimeout",
        "WriteTimeout",
        "PoolTimeout",
    }:
        return Said("busy", f"no whole answer within {seconds:g} s", unreachable=True)
    if names & {"InvalidURL", "UnsupportedProtocol", "UnicodeError", "UnicodeEncodeError"}:
        return Said("denied", "the address is none of a server")
    if "ConnectError" in names:
        return Said("busy", f"no connection: {one_line(str(error), limit=120)}", unreachable=True)
    return Said("busy", "the connection broke off before the answer was whole", unreachable=True)


def asked_wait(headers: Mapping[str, str], answer: object, words: str, now: float) -> float | None:
    """Seconds a server asked to wait: `retry-after-ms`, `Retry-After` (seconds or a date), or in its words."""
    for value, unit in ((headers.get("retry-after-ms", ""), 0.001), (headers.get("retry-after", ""), 1.0)):
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        # A date without a zone is in UTC, as all of HTTP is.
        stamp = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        return max(0.0, stamp - now)
    except (TypeError, ValueError, OverflowError, IndexError):
        pass
    for _, key, value in _walk(answer):
        if key.lower() in ("retrydelay", "retry_delay", "retry_after", "retry_after_seconds"):
            if isinstance(value, int | float) and math.isfinite(value):
                return max(0.0, float(value))
            if isinstance(value, str) and (span := _seconds(value)) is not None:
                return span
    match = _TRY_AGAIN.search(words)
    return _seconds(match.group(1)) if match else None


def _seconds(text: str) -> float | None:
    """Of `20s`, `1m30s`, `6ms`, `2 hours`."""
    parts = _SPAN.findall(text[:80])
    return sum(float(number) * _UNITS[unit.lower()] for number, unit in parts) if parts else None


def _refused_parameter(status: int, answer: object, words: str, sent: Mapping[str, object]) -> str:
    """The optional parameter of the call that the server does not take; empty where it is about something else."""
    if status not in (400, 404, 422, 500, 501):
        return ""
    ours = [name for name in sent if name in OPTIONAL]
    named = {str(value).rpartition(".")[2] for _, key, value in _walk(answer) if key == "param"}
    for _, key, value in _walk(answer):
        if key == "loc" and isinstance(value, list):
            named |= {str(part) for part in value}
    if status != 500 and (found := [name for name in ours if name in named]):
        return found[0]
    if not _NOT_TAKEN.search(words):
        return ""
    mentioned = [(m.start(), name) for name in ours if (m := re.search(rf"(?<!\w){name}(?!\w)", words))]
    return min(mentioned)[1] if mentioned else ""


def _bound(parameter: str, words: str, sent: Mapping[str, object]) -> float | None:
    value = sent[parameter]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if parameter == "temperature" and value == 0 and _POSITIVE.search(words):
        return _SMALLEST_TEMPERATURE
    if not _BOUND.search(words):
        return None
    numbers = [float(n) for n in _NUMBER.findall(words) if float(n) != value]
    if numbers and value > max(numbers) > 0:
        return max(numbers)
    return min(numbers) if numbers and value < min(numbers) else None


def _room(words: str) -> int | None:
    """Tokens that fit after the prompt, where a server says both its limit and the prompt's length."""
    for pattern in _LIMIT_AND_PROMPT:
        if match := pattern.search(words):
            limit, prompt = map(int, match.groups())
            return max(0, limit - prompt)
    return None


def _has_system(sent: Mapping[str, object], *, empty: bool = False) -> bool:
    """Whether the call has a system message; with `empty`, whether it has one that says nothing."""
    messages = sent.get("messages")
    if not isinstance(messages, list):
        return False
    return any(m.get("role") == "system" and not (empty and m["content"].strip()) for m in messages)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _walk(value: object, depth: int = 0) -> Iterator[tuple[int, str, object]]:
    """(depth, key, value) of every field, outer ones first."""
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        for key, inner in list(value.items())[:40]:
            yield depth, str(key), inner
        for inner in list(value.values())[:40]:
            yield from _walk(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value[:20]:
            yield from _walk(inner, depth + 1)


_WORDS = (
    "message",
    "detail",
    "error",
    "msg",
    "errors",
    "faultstring",
    "error_description",
    "title",
    "raw",
    "reason",
)


def _words(answer: object, depth: int = 0) -> str:
    """The server's own words, wherever in its answer it puts them."""
    if depth > _DEEPEST:
        return ""
    if isinstance(answer, str):
        inner = (
            _parsed(answer) if answer[:1] in ("{", "[") else None
        )  # a proxy's message may be another's whole answer
        return (_words(inner, depth + 1) if inner is not None else "") or answer
    if isinstance(answer, list):
        return "; ".join(filter(None, (_words(item, depth + 1) for item in answer[:3])))
    if not isinstance(answer, dict):
        return ""
    lower = {str(key).lower(): value for key, value in answer.items()}
    said = next(filter(None, (_words(lower[key], depth + 1) for key in _WORDS if key in lower)), "")
    if not said:
        inner = (value for value in lower.values() if isinstance(value, dict))
        said = next(filter(None, (_words(value, depth + 1) for value in inner)), "")
    place = lower.get("loc")
    if said and isinstance(place, list):
        return f"{'.'.join(map(str, place))}: {said}"
    raw = lower.get("metadata")
    more = _words(raw, depth + 1) if isinstance(raw, dict) and "raw" in raw else ""
    return f"{said}: {more}" if more and more not in said else said


def _codes(answer: object) -> Iterator[str]:
    for _, key, value in _walk(answer):
        if key.lower() in (
            "code",
            "type",
            "error_type",
            "status",
            "error_code",
            "reason",
            "__type",
        ) and isinstance(value, str | int):
            yield str(value).lower()


def _has_key(answer: object, name: str) -> bool:
    return any(key == name for _, key, _ in _walk(answer))


def _bare(text: str) -> str:
    """A page's title or text without its tags."""
    if "<" not in text[:200]:
        return text[:2000]
    title = re.search(r"<title>([^<]{1,200})", text[:4000], re.IGNORECASE)
    return title.group(1) if title else re.sub(r"<[^<>]{0,400}>", " ", text[:4000])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
