"""The options of a generation, and its result."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compiler.errors import OptionError
from compiler.generation.grammar import Grammar
from compiler.support.shown import shown

_MAX_BIAS = 100


@dataclass(frozen=True)
class GenerationOptions:
    """Options of text generation.

    Attributes:
        max_new_tokens: maximum number of generated tokens.
        temperature: 0 always chooses the most likely token; otherwise logits are divided by it before sampling.
        top_k: sample only from the k most likely tokens; 0 for all.
        top_p: sample only from the most likely tokens whose probabilities reach this sum.
        min_p: sample only from tokens at least this times as likely as the most likely one.
        repetition_penalty: logits of earlier tokens are divided by it, or multiplied if they are negative; 1 for none.
        frequency_penalty, presence_penalty: subtracted from the logits of tokens in the result so far: the first once
            per occurrence, the second once.
        logit_bias: token -> number added to its logit, from -100 to 100.
        stop: texts that end the generation and are not part of the result.
        seed: seed of the random numbers; None for a new one each time. The result contains the seed.
        grammar: constraint on the text: a `Grammar`, a JSON schema as a dictionary, or a grammar in EBNF as text.
        speculative: guess at most this many tokens, and check them in one run; 0 for none. The result stays the same.
            Guesses come from the draft model, or from earlier occurrences in the prompt and the text.
        adapter: name of the module's adapter to use; None for the base.
        logprobs: also return log probabilities of each token and of this many most likely ones; None for none.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    stop: str | tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    speculative: int = 0
    grammar: Grammar | str | Mapping[str, Any] | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(each, str) and each for each in stop):
            raise OptionError(f"stop must be texts that are not empty, not {shown(self.stop)}")
        object.__setattr__(self, "stop", stop)
        if isinstance(self.grammar, str):
            object.__setattr__(self, "grammar", Grammar.ebnf(self.grammar))
        elif isinstance(self.grammar, Mapping):
            object.__setattr__(self, "grammar", Grammar.json_schema(self.grammar))
        elif not isinstance(self.grammar, Grammar | None):
            raise OptionError(f"grammar must be a Grammar, a JSON schema or a text in EBNF, not {shown(self.grammar)}")
        self._check_whole("max_new_tokens", 0)
        self._check_whole("top_k", 0)
        self._check_whole("speculative", 0)
        if self.seed is not None:
            self._check_whole("seed", 0)
        if self.logprobs is not None:
            self._check_whole("logprobs", 0)
        self._check_range("temperature", 0, math.inf)
        self._check_range("top_p", 0, 1)
        self._check_range("min_p", 0, 1)
        self._check_range("repetition_penalty", 0, math.inf)
        self._check_range("frequency_penalty", -2, 2)
        self._check_range("presence_penalty", -2, 2)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.top_p == 0 or self.repetition_penalty == 0:
            raise OptionError("top_p and repetition_penalty must be above 0")

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise OptionError(f"{name} must be a whole number of at least {least}, not {shown(value)}")

    def _check_range(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            wanted = f"from {least} to {most}" if math.isfinite(most) else f"of at least {least}"
            raise OptionError(f"{name} must be a number {wanted}, not {shown(value)}")
        if value > sys.float_info.max:
            raise OptionError(f"{name} must be a finite number of 64 bits")


def _biases(given: Mapping[int, float] | Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return pairs of a token and a number. Raises OptionError for anything else."""
    pairs = tuple(given.items() if isinstance(given, Mapping) else given)
    for token, bias in pairs:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise OptionError(f"logit_bias must have tokens, not {shown(token)}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -_MAX_BIAS <= bias <= _MAX_BIAS:
            raise OptionError(f"logit_bias must have numbers from -{_MAX_BIAS} to {_MAX_BIAS}, not {shown(bias)}")
    return pairs


FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log probability before temperature and penalties.

    Attributes:
        alternatives: the most likely tokens at this position with their log probabilities, most likely first.
    """

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """A generated text.

    Attributes:
        text: text without the prompt; empty if the module has no tokenizer.
        tokens: generated tokens, without a token that ended the text.
        finish_reason: "stop": the model or a stop text ended it; "length": the requested number of tokens is reached,
            or the context is full; "cancelled": the caller ended it.
        prompt_tokens: number of tokens in the prompt.
        reused_tokens: number of prompt tokens computed by an earlier turn.
        prompt_seconds, decode_seconds: time for the prompt up to the first token, and for the rest.
        seed: seed of the random numbers; None if none were used.
        logprobs: one per token, if requested.
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
