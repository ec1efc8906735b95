"""Sampling of the next token."""

from __future__ import annotations

import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from compiler.errors import InputError
from compiler.generation.options import GenerationOptions, TokenLogprob

Logits = np.ndarray
_SEED_BITS = 53  # so that JSON holds it exactly


class Sampler:
    """Chooses tokens of one text."""

    def __init__(
        self,
        options: GenerationOptions,
        seen: Iterable[int],
        suppressed: Sequence[int] = (),
        suppressed_first: Sequence[int] = (),
    ) -> None:
        """`seen`: the prompt's tokens, for the repetition penalty; `suppressed`: tokens that are never chosen;
        `suppressed_first`: tokens that are never chosen first."""
        self._suppressed = list(suppressed)
        self._suppressed_now = sorted({*suppressed, *suppressed_first})
        self._options = options
        self._seen = set(seen)
        self._chosen: Counter[int] = Counter()
        self.seed: int | None = None
        self._random: np.random.Generator | None = None
        if options.temperature > 0:
            self.seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed
            self._random = np.random.default_rng(self.seed)

    def choose(self, logits: Logits, allowed: np.ndarray[Any, np.dtype[np.bool_]] | None = None) -> int:
        """Choose the next token from float32 logits (vocabulary,), among the allowed ones; None for all.

        Raises InputError if the logits are not finite.
        """
        scores = self._biased(self._penalized(logits))
        if self._suppressed_now:
            scores = scores.copy()
            scores[self._suppressed_now] = -np.inf
            self._suppressed_now = self._suppressed
        if allowed is not None:
            scores = np.where(allowed, scores, np.float32(-np.inf))
        token = int(scores.argmax())  # the first that is NaN, if any is
        if not np.isfinite(scores[token]):
            raise InputError(
                "the model computed logits that are NaN or infinite", "its weights or its precision are broken"
            )
        if self._random is not None:
            token = self._drawn(scores, self._random)
        self._seen.add(token)
        self._chosen[token] += 1
        return token

    def logprob(self, logits: Logits, token: int) -> TokenLogprob:
        """Return the log probabilities of a token and of the most likely ones."""
        wide = logits.astype(np.float64)
        values = wide - wide.max()
        values = values - np.log(np.exp(values).sum())
        count = min(self._options.logprobs or 0, len(values))
        best = np.argsort(-values, kind="stable")[:count]
        return TokenLogprob(token, float(values[token]), tuple((int(each), float(values[each])) for each in best))

    def _penalized(self, logits: Logits) -> Logits:
        largest = np.finfo(np.float32).max
        penalty = min(self._options.repetition_penalty, float(largest))
        if penalty == 1.0 or not self._seen:
            return logits
        scores = logits.copy()
        seen = np.fromiter(self._seen, np.int64)
        values = scores[seen]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # in values discarded below
            changed = np.where(values > 0, values / penalty, values * penalty)
        scores[seen] = np.where(np.isfinite(values), changed.clip(-largest, largest), values)
        return scores

    def _biased(self, scores: Logits) -> Logits:
        """Add biases to the logits, and subtract penalties of tokens in the result so far."""
        options: GenerationOptions = self._options
        changes: dict[int, float] = defaultdict(float)
        if options.frequency_penalty or options.presence_penalty:
            for token, count in self._chosen.items():
                changes[token] = -options.frequency_penalty * count - options.presence_penalty
        for token, bias in dict(options.logit_bias).items():
            changes[token] += bias
        if changes:
            scores = scores.copy()
            scores[list(changes)] += np.array(list(changes.values()), np.float32)
        return scores

    def _drawn(self, scores: Logits, random: np.random.Generator) -> int:
        """Sample a token after temperature, top-k, top-p and min-p, in this order."""
        options = self._options
        order = np.argsort(-scores, kind="stable")
        order = order[: max(1, np.count_nonzero(scores > -np.inf))]
        if options.top_k:
            order = order[: options.top_k]
        wide = scores[order].astype(np.float64)
        with np.errstate(over="ignore"):  # differences from the largest may be infinite, but not the largest itself
            chances = np.exp((wide - wide[0]) / options.temperature)
        chances /= chances.sum()
        if options.top_p < 1:
            kept = int(np.searchsorted(np.cumsum(chances), options.top_p)) + 1
            order, chances = order[:kept], chances[:kept]
        if options.min_p > 0:
            likely = chances >= options.min_p * chances[0]
            order, chances = order[likely], chances[likely]
        ends = np.cumsum(chances)
        index = int(np.searchsorted(ends, random.random() * ends[-1], side="right"))
        return int(order[min(index, len(order) - 1)])
