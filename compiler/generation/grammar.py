"""Structured output with xgrammar: texts that match a JSON schema, a grammar or a regular expression.

To check that every rule of a grammar derives a finite text, grammars printed by xgrammar are parsed:

rule ::= (("text" [a-z]* other) | (other{2, 3}))
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from compiler.errors import InputError, OptionError
from compiler.generation.tokenizer import Tokenizer
from compiler.support.optional import optional_module

Kind = Literal["json_schema", "ebnf", "regex", "structural_tag"]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Bits = np.ndarray[Any, np.dtype[np.int32]]
_NAMES = {
    "json_schema": "JSON schema",
    "ebnf": "grammar",
    "regex": "regular expression",
    "structural_tag": "structural tag",
}
_CACHE_BYTES = 256 << 20  # compiled grammars per model
WHITESPACE = 64  # between parts of JSON: without a limit, a text could be white space forever


@dataclass(frozen=True)
class Grammar:
    """A constraint on the generated text.

    Attributes:
        kind: kind of `text`: "json_schema"; "ebnf", a grammar like llama.cpp's GBNF with start rule `root`; "regex";
            "structural_tag", a format of xgrammar as JSON.
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in _NAMES or not isinstance(self.text, str):
            raise OptionError(f"a grammar is one of {', '.join(_NAMES)} and a text, not {self.kind!r}")

    @staticmethod
    def json_schema(schema: str | Mapping[str, object]) -> Grammar:
        """Constrain texts to valid JSON for a schema, given as a dictionary or JSON text."""
        return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema))

    @staticmethod
    def ebnf(text: str) -> Grammar:
        """Constrain texts to a grammar in EBNF."""
        return Grammar("ebnf", text)

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Constrain whole texts to a regular expression."""
        return Grammar("regex", pattern)

    @staticmethod
    def structural_tag(form: Mapping[str, object]) -> Grammar:
        """Constrain texts to a format of xgrammar: JSON schemas between texts and special tokens."""
        return Grammar("structural_tag", json.dumps({"type": "structural_tag", "format": form}))


class Grammars:
    """Compiles grammars for a model's vocabulary; recently used ones are cached. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, stop_tokens: tuple[int, ...]) -> None:
        """Raises MissingDependencyError if xgrammar is not installed."""
        self._package: Any = optional_module("xgrammar", "grammar", "constrains texts to a grammar")
        self._vocabulary, self._stop_tokens = vocabulary, stop_tokens
        tokens = tokenizer.token_bytes(vocabulary)
        for text, number in tokenizer.special_tokens().items():
            if number < vocabulary and number not in stop_tokens:  # no text has the byte: only formats that name it
                tokens[number] = b"\xff" + text.encode()
        information = self._package.TokenizerInfo(
            tokens, self._package.VocabType.RAW, vocab_size=vocabulary, stop_token_ids=list(stop_tokens)
        )
        self._compiler = self._package.GrammarCompiler(information, max_threads=1, cache_limit_bytes=_CACHE_BYTES)
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar) -> Matcher:
        """Create a matcher for one text. Raises as `compile`."""
        return Matcher(self.masks(self.compile(grammar)), self._vocabulary, self._stop_tokens)

    def compile(self, grammar: Grammar) -> Any:
        """Compile a grammar with xgrammar. Raises OptionError if it is invalid, or has texts that never end."""
        name = _NAMES[grammar.kind]
        try:
            with self._lock:
                compiled = self._compiled(grammar)
        except (RuntimeError, ValueError, TypeError) as error:  # xgrammar has no common base class of its errors
            lines = str(error).strip().splitlines()
            raise OptionError(
                f"the {name} cannot be used: {lines[0].split(': ', 1)[-1] if lines else error}"
            ) from error
        try:
            endless = endless_rule(str(compiled.grammar))
        except RecursionError as error:
            raise OptionError(f"the {name} is nested too deeply") from error
        if endless is not None:
            raise OptionError(f"the {name} has a rule that no text can ever end: {endless!r}", "let it end")
        return compiled

    def masks(self, compiled: Any) -> OwnMasks:
        """Create the token masks of one text for a compiled grammar."""
        return OwnMasks(self._package.GrammarMatcher(compiled), self._vocabulary)

    def _compiled(self, grammar: Grammar) -> Any:
        if grammar.kind == "json_schema":
            return self._compiler.compile_json_schema(grammar.text, max_whitespace_cnt=WHITESPACE)
        if grammar.kind == "regex":
            return self._compiler.compile_regex(grammar.text)
        if grammar.kind == "structural_tag":
            return self._compiler.compile_structural_tag(grammar.text)
        return self._compiler.compile_grammar(grammar.text)


class Masks(Protocol):
    """Token-by-token masks of a text's grammar, computed in this or another process."""

    def accept(self, token: int) -> None:
        """Advance by a chosen token. Raises InputError if it is not allowed."""

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; True if `next` then returns immediately. Raises InputError if it never will."""

    def next(self) -> tuple[Bits | None, bool]:
        """Return the bit mask of allowed next tokens, int32 (vocabulary / 32,), None for all; and True if the text may
        end here. Raises InputError if they cannot be determined."""


class OwnMasks:
    """Masks of a grammar that was compiled in this process."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((1, -(-vocabulary // 32)), np.int32)

    def accept(self, token: int) -> None:
        """See `Masks`."""
        if not self._matcher.accept_token(token):
            raise InputError("the grammar does not allow the token that was chosen")

    def wait(self, seconds: float) -> bool:
        """See `Masks`."""
        return True

    def next(self) -> tuple[Bits | None, bool]:
        """See `Masks`."""
        masked = self._matcher.fill_next_token_bitmask(self._bits)
        return self._bits[0] if masked else None, self._matcher.is_completed()


class Matcher:
    """Follows one text, token by token."""

    def __init__(self, masks: Masks, vocabulary: int, stop_tokens: tuple[int, ...]) -> None:
        self._masks, self._vocabulary, self._stop_tokens = masks, vocabulary, sorted(set(stop_tokens))
        self._next: tuple[Mask | None, bool] | None = None

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; True if the allowed next tokens are then known. Raises InputError if they never
        will be."""
        return self._next is not None or self._masks.wait(seconds)

    @property
    def allowed(self) -> Mask | None:
        """The mask of allowed next tokens, bool (vocabulary,); None for all. Raises InputError if none is allowed."""
        return self._known()[0]

    @property
    def ended(self) -> bool:
        """True if only the end may follow."""
        return self._known()[1]

    def accept(self, token: int) -> None:
        """Advance by a chosen token that does not end the text."""
        self._masks.accept(token)
        self._next = None

    def _known(self) -> tuple[Mask | None, bool]:
        if self._next is None:
            self._next = self._read(*self._masks.next())
        return self._next

    def _read(self, bits: Bits | None, completed: bool) -> tuple[Mask | None, bool]:
        if bits is None:
            return None, False
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little", count=self._vocabulary).view(np.bool_)
        stops = allowed[self._stop_tokens]
        ended = np.count_nonzero(allowed) == np.count_nonzero(stops)
        if ended and not stops.any() and not completed:
            raise InputError(
                "the grammar allows no token here: the model's vocabulary has no token for the required text",
                "change the grammar",
            )
        return allowed, ended


_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"(?:\\.|[^"\\])*")
    | (?P<characters>\[(?:\\.|[^\]\\])*\])
    | (?P<repeat>\{\s*(?P<least>\d+)[^}]*\})
    | (?P<name>[A-Za-z_][\w.-]*)
    | (?P<symbol>\(=|[()|*+?])
    | (?P<other>\S)
    )""",
    re.VERBOSE,
)
_RULE = re.compile(r"^(?P<name>[A-Za-z_][\w.-]*)\s*::=", re.MULTILINE)


def endless_rule(grammar: str) -> str | None:
    """Return a rule of a printed grammar that matches no finite text; None if there is none."""
    starts = list(_RULE.finditer(grammar))
    ends = [each.start() for each in starts[1:]] + [len(grammar)]
    rules = {each["name"]: grammar[each.end() : end] for each, end in zip(starts, ends, strict=True)}
    finite: dict[str, bool] = dict.fromkeys(rules, False)
    changed = True
    while changed:
        changed = False
        for name, body in rules.items():
            if not finite[name] and _Body(body, finite).is_finite():
                finite[name] = changed = True
    return next((name for name, known in finite.items() if not known), None)


class _Body:
    """The right-hand side of a rule."""

    def __init__(self, text: str, finite: Mapping[str, bool]) -> None:
        self._tokens = list(_tokens(text))
        self._finite, self._at = finite, 0

    def is_finite(self) -> bool:
        """True if it matches a finite text, given the rules already known to be finite."""
        return self._choice()

    def _choice(self) -> bool:
        matched = self._sequence()
        while self._take("|"):
            matched = self._sequence() or matched
        return matched

    def _sequence(self) -> bool:
        matched = True
        while self._at < len(self._tokens) and self._tokens[self._at] not in ("|", ")"):
            matched = self._repeated() and matched
        return matched

    def _repeated(self) -> bool:
        matched = self._single()
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token in ("*", "?", "{0"):
                matched = True
            elif token not in ("+", "{"):
                break
            self._at += 1
        return matched

    def _single(self) -> bool:
        token = self._tokens[self._at]
        self._at += 1
        if token in ("(", "(="):
            found = self._choice()
            self._take(")")
            return found or token == "(="
        if self._at < len(self._tokens) and self._tokens[self._at] == "(" and token not in self._finite:
            self._skip()  # a construct specific to xgrammar, with arguments
            return True
        return self._finite.get(token, True)

    def _skip(self) -> None:
        depth = 0
        while self._at < len(self._tokens):
            depth += {"(": 1, "(=": 1, ")": -1}.get(self._tokens[self._at], 0)
            self._at += 1
            if depth == 0:
                return

    def _take(self, token: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == token:
            self._at += 1
            return True
        return False


def _tokens(text: str) -> Iterator[str]:
    """Return names and symbols; texts and character classes as "", repetitions as "{" or "{0"."""
    for match in _TOKEN.finditer(text):
        if match["name"] or match["symbol"]:
            yield match["name"] or match["symbol"]
        elif match["repeat"]:
            yield "{0" if int(match["least"]) == 0 else "{"
        else:
            yield ""
