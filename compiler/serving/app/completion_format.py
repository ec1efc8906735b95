"""Texts in OpenAI's response format, whole or streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from compiler.generation.handle import Usage
from compiler.generation.result import TokenLogprob

TokenText = Callable[[int], str]


class Format(Protocol):
    """The format of one kind of response."""

    def choice(self, index: int, text: str, reason: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """A whole text."""

    def begin(self, index: int) -> dict[str, Any] | None:
        """The first part of a streamed text."""

    def piece(self, index: int, text: str, logprob: TokenLogprob | None) -> dict[str, Any]:
        """A part of a streamed text."""

    def end(self, index: int, reason: str) -> dict[str, Any]:
        """The last part of a streamed text."""


@dataclass
class Envelope:
    """Fields that all parts of a response share."""

    kind: str
    model: str
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_hex(12))

    def around(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """A response, or a part of one."""
        content: dict[str, Any] = {
            "id": f"{self.prefix}-{self.number}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }
        return content if usage is None else {**content, "usage": usage}


class ChatFormat:
    """The format of chat completions."""

    def __init__(self, text_of: TokenText) -> None:
        self._text_of = text_of

    def choice(self, index: int, text: str, reason: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """See `Format`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": None if logprobs is None else {"content": [self._logprob(each) for each in logprobs]},
            "finish_reason": reason,
        }

    def begin(self, index: int) -> dict[str, Any]:
        """See `Format`."""
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, text: str, logprob: TokenLogprob | None) -> dict[str, Any]:
        """See `Format`."""
        logprobs = None if logprob is None else {"content": [self._logprob(logprob)]}
        return self._delta(index, {"content": text}, None, logprobs)

    def end(self, index: int, reason: str) -> dict[str, Any]:
        """See `Format`."""
        return self._delta(index, {}, reason, None)

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None, logprobs: object) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprob(self, each: TokenLogprob) -> dict[str, Any]:
        alternatives = [self._token(token, value) for token, value in each.alternatives]
        return {**self._token(each.token, each.logprob), "top_logprobs": alternatives}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        text = self._text_of(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}


class TextFormat:
    """The format of completions."""

    def __init__(self, text_of: TokenText) -> None:
        self._text_of = text_of
        self._offsets: dict[int, int] = {}

    def choice(self, index: int, text: str, reason: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """See `Format`."""
        return self._choice(index, text, reason, logprobs)

    def begin(self, index: int) -> None:
        """See `Format`."""
        return

    def piece(self, index: int, text: str, logprob: TokenLogprob | None) -> dict[str, Any]:
        """See `Format`."""
        return self._choice(index, text, None, None if logprob is None else [logprob])

    def end(self, index: int, reason: str) -> dict[str, Any]:
        """See `Format`."""
        return self._choice(index, "", reason, None)

    def _choice(
        self, index: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprob] | None
    ) -> dict[str, Any]:
        listed = None if logprobs is None else self._logprobs(index, logprobs)
        return {"index": index, "text": text, "logprobs": listed, "finish_reason": reason}

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        texts = [self._text_of(each.token) for each in logprobs]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [{self._text_of(token): value for token, value in each.alternatives} for each in logprobs],
            "text_offset": offsets,
        }


def usage_of(counts: Sequence[Usage], prompts: int) -> dict[str, Any]:
    """The tokens of several texts; those of each prompt once, though it gave several texts."""
    each = len(counts) // prompts
    prompt = sum(count.prompt_tokens for count in counts[::each])
    generated = sum(count.generated_tokens for count in counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(count.cached_tokens for count in counts[::each])},
    }
