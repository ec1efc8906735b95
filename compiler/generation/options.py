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

_MOST_BIAS = 100


@dataclass(frozen=True)
class GenerationOptions:
    """Options of text generation.

    Attributes:
        max_new_tokens: at most this many tokens.
        temperature: 0 takes the most likely token each time; else logits are divided by it before one is drawn.
        top_k: only the k most likely tokens are drawn; 0 for all.
        top_p: only the most likely tokens whose probabilities reach this sum are drawn.
        min_p: only tokens at least this times as likely as the most likely one are drawn.
        repetition_penalty: logits of tokens that were seen before are divided by it, or multiplied where they are
            negative; 1 for none.
        frequency_penalty, presence_penalty: taken off the logits of tokens of the result so far: the first each time
            that they occur, the second once.
        logit_bias: token -> what is added to its logit, from -100 to 100.
        stop: texts that end the generation and are not part of the result.
        seed: seed of the random numbers; None for another one each time. The result says which it was.
        grammar: the text must match it: a `Grammar`, a JSON schema as a dictionary, or a grammar in EBNF as text.
        speculative: guess this many tokens at most, and check them in one run; 0 for none. The result stays the same.
            Guesses come from the model's draft model, or from what followed in the prompt and the text before.
        adapter: name of the adapter of the module that the text is generated with; None for the base.
        logprobs: for each token also log probabilities: its own, and those of this many likely ones; None: none.
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
    """Pairs of a token and a number. Raises OptionError for anything else."""
    pairs = tuple(given.items() if isinstance(given, Mapping) else given)
    for token, bias in pairs:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise OptionError(f"logit_bias must have tokens, not {shown(token)}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -_MOST_BIAS <= bias <= _MOST_BIAS:
            raise OptionError(f"logit_bias must have numbers from -{_MOST_BIAS} to {_MOST_BIAS}, not {shown(bias)}")
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
        text: without the prompt; empty where the module has no tokenizer.
        tokens: those of the result; a token that ended it is not among them.
        finish_reason: "stop": the model or a stop text ended it; "length": this many tokens were asked for, or the
            context is full; "cancelled": the caller ended it.
        prompt_tokens: number of tokens that the prompt has.
        reused_tokens: number of them that an earlier turn had computed.
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
