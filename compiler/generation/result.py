"""Result of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log probability before temperature and penalties.

    Attributes:
        alternatives: the most likely tokens at this place with their log probabilities, most likely first.
    """

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """A generated text.

    Attributes:
        text: without the prompt; empty where the module has no tokenizer.
        tokens: those of the result; a token that ended it is not among them.
        finish_reason: "stop": the model or a stop text ended it; "length": so many tokens were asked for, or the
            context is full; "cancelled": the caller ended it.
        prompt_tokens: number of tokens that the prompt has.
        reused_tokens: how many of them an earlier turn had computed already.
        prompt_seconds, decode_seconds: time for the prompt up to the first token, and for what followed.
        seed: seed of the random numbers; None where none were drawn.
        logprobs: one for each token, where asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    reused_tokens: int
    prompt_seconds: float
    decode_seconds: float
    decoded: int
    seed: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens per second."""
        return (self.prompt_tokens - self.reused_tokens) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decoding runs per second; 0 if there was none."""
        return self.decoded / self.decode_seconds if self.decode_seconds > 0 else 0.0
