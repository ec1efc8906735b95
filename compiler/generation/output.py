"""The output of one sequence: tokens sampled from logits, their text, and the stopping condition; with incremental
detokenization and detection of stop texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.generation.grammar import Matcher
from compiler.generation.options import FinishReason, Generation, GenerationOptions, TokenLogprob
from compiler.generation.sampling import Logits, Sampler

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Piece:
    """A token (None at the end), and the text that it makes certain, possibly empty or of earlier tokens. `logprob`:
    its log probability, if requested."""

    token: int | None
    text: str
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds for the prompt up to the first token, seconds for the rest, and its number of runs."""

    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    decoded: int = 0


@dataclass(frozen=True)
class TokenRules:
    """Tokens that end a text, tokens that are never generated, and tokens that are never generated first."""

    stop: Sequence[int] = ()
    suppressed: Sequence[int] = ()
    suppressed_first: Sequence[int] = ()


class Output:
    """The result of one sequence as it grows.

    Attributes:
        tokens: tokens generated so far.
        reason: why it has ended; None before that.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        rules: TokenRules,
        decode: Decode,
        room: int,
        matcher: Matcher | None = None,
    ) -> None:
        """`room`: maximum number of tokens, including the prompt; `matcher`: matcher of the grammar."""
        self._matcher = matcher
        self._prompt_tokens, self.options, self._room = len(prompt), options, room
        self._ends = frozenset(rules.stop)
        self._sampler = Sampler(options, prompt, rules.suppressed, rules.suppressed_first)
        self._text, self._stop = TextStream(decode, prompt), StopTexts(options.stops)
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.tokens: list[int] = []
        self.reason: FinishReason | None = None
        self._check_length()

    def take(self, logits: Logits) -> Piece | None:
        """Choose the next token from its logits, float32 (vocabulary,); None if it ends the sequence.

        Raises InputError if the logits are not finite.
        """
        matcher = self._matcher
        token = self._sampler.choose(logits, None if matcher is None else matcher.allowed)
        if token in self._ends:
            self.reason = "stop"
            return None
        logprob = None
        if self.options.logprobs is not None:
            logprob = self._sampler.logprob(logits, token)
            self._logprobs.append(logprob)
        self.tokens.append(token)
        if matcher is not None:
            matcher.accept(token)
        text = self._stop.add(self._text.add(token))
        self._pieces.append(text)
        if self._stop.found:
            self.reason = "stop"
        else:
            self.settle()
        return Piece(token, text, logprob)

    def settle(self, seconds: float = 0.0) -> bool:
        """Determine if the last token ends the sequence; return False if its grammar, in another process, does not
        answer within this many seconds. Raises InputError if the grammar allows no other token."""
        matcher = self._matcher
        if self.reason is None and self.tokens:
            if matcher is not None and not matcher.wait(seconds):
                return False
            if matcher is not None and matcher.ended:
                self.reason = "stop"
            else:
                self._check_length()
        return True

    def take_checked(self, logits: Logits, guesses: Sequence[int]) -> list[Piece]:
        """Accept tokens while they match the guesses, and one more.

        Args:
            logits: float32 (guesses + 1, vocabulary): for the next token, and after each guess.
            guesses: guesses of the next tokens.
        """
        pieces = []
        for row, expected in enumerate([*guesses, None]):
            piece = self.take(logits[row])
            if piece is not None:
                pieces.append(piece)
            if self.reason is not None or self.tokens[-1] != expected:
                break
        return pieces

    @property
    def left(self) -> int:
        """Number of tokens that may still follow."""
        used = self._prompt_tokens + len(self.tokens)
        return max(0, min(self.options.max_new_tokens - len(self.tokens), self._room + 1 - used))

    def end(self) -> Piece | None:
        """Return the text that was held back until the end; call it once, when `reason` is set."""
        rest = "" if self._stop.found else self._stop.add(self._text.end()) + self._stop.end()
        self._pieces.append(rest)
        return Piece(None, rest) if rest else None

    def result(self, reused: int, timing: Timing) -> Generation:
        """Return the generation, after `end`; `reused`: number of prompt tokens that came from the cache."""
        assert self.reason is not None
        return Generation(
            text="".join(self._pieces),
            tokens=tuple(self.tokens),
            finish_reason=self.reason,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=reused,
            prompt_seconds=timing.prompt_seconds,
            decode_seconds=timing.decode_seconds,
            decoded=timing.decoded,
            seed=self._sampler.seed,
            logprobs=tuple(self._logprobs),
        )

    def _check_length(self) -> None:
        used = self._prompt_tokens + len(self.tokens)
        if len(self.tokens) >= self.options.max_new_tokens or used > self._room:
            self.reason = "length"


_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # maximum UTF-8 bytes, and so tokens, of one character


class TextStream:
    """Incremental detokenizer; a character is emitted once all of its bytes are known."""

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        """`context`: preceding tokens, from which some tokenizers decide on a leading space."""
        self._decode = decode
        self._tokens = list(context)[-_LONGEST_CHARACTER:]
        self._begin, self._given = 0, len(self._tokens)

    def add(self, token: int) -> str:
        """Return the text that this token completes; "" if it ends within a character."""
        self._tokens.append(token)
        return self._next(final=False)

    def end(self) -> str:
        """Return the remaining text: bytes that do not form a character become replacement characters."""
        return self._next(final=True)

    def _next(self, *, final: bool) -> str:
        shown_text = self._decode(self._tokens[self._begin : self._given])
        now = self._decode(self._tokens[self._begin :])
        waiting = len(self._tokens) - self._given
        incomplete = now.endswith(_BROKEN) and waiting < _LONGEST_CHARACTER
        if not waiting or (incomplete and not final):
            return ""
        text = now[len(shown_text) :]
        if (
            text
        ):  # after only special tokens, a decoder treats the next token as the beginning, which may lose its space
            self._begin = self._given
        self._given = len(self._tokens)
        return text


class StopTexts:
    """Filter that holds back a possible beginning of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = tuple(stops), ""
        self.found = False

    def add(self, piece: str) -> str:
        """Return the text that can be emitted now; sets `found` if a stop text is complete."""
        if self.found:
            return ""
        text = self._held + piece
        positions = [index for index in (text.find(stop) for stop in self._stops) if index >= 0]
        if positions:
            self.found, self._held = True, ""
            return text[: min(positions)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """Return held-back text that did not become a stop text."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of `text` that are a prefix of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
