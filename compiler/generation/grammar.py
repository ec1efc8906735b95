"""Structured output with xgrammar: texts that match a JSON schema, a grammar or a regular expression."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from compiler.errors import InputError, OptionError
from compiler.generation.grammar_rules import endless_rule
from compiler.generation.tokenizer import Tokenizer
from compiler.support.optional import optional_module

Kind = Literal["json_schema", "ebnf", "regex"]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
_NAMES = {"json_schema": "JSON schema", "ebnf": "grammar", "regex": "regular expression"}
_CACHE_BYTES = 256 << 20  # of grammars that a model has compiled
_WHITESPACE = 64  # between parts of JSON: without a limit, a text may go on with it for ever


@dataclass(frozen=True)
class Grammar:
    """A constraint on the generated text.

    Attributes:
        kind: what `text` is: "json_schema"; "ebnf", a grammar as llama.cpp's GBNF, from its rule `root` on; "regex".
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in _NAMES or not isinstance(self.text, str):
            raise OptionError(f"a grammar is one of {', '.join(_NAMES)} and a text, not {self.kind!r}")

    @staticmethod
    def json_schema(schema: str | Mapping[str, object]) -> Grammar:
        """JSON that is valid by a schema, which is a dictionary or JSON itself."""
        return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema))

    @staticmethod
    def ebnf(text: str) -> Grammar:
        """Texts of a grammar in EBNF."""
        return Grammar("ebnf", text)

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Texts that match a regular expression as a whole."""
        return Grammar("regex", pattern)


class Grammars:
    """Compiles grammars for a model's vocabulary; recently used ones are cached. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, stop_tokens: tuple[int, ...]) -> None:
        """Raises MissingDependencyError where xgrammar is not installed."""
        self._package: Any = optional_module("xgrammar", "grammar", "constrains texts to a grammar")
        self._vocabulary, self._stop_tokens = vocabulary, stop_tokens
        information = self._package.TokenizerInfo(
            tokenizer.token_bytes(vocabulary),
            self._package.VocabType.RAW,
            vocab_size=vocabulary,
            stop_token_ids=list(stop_tokens),
        )
        self._compiler = self._package.GrammarCompiler(information, max_threads=1, cache_limit_bytes=_CACHE_BYTES)
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar) -> Matcher:
        """What follows one text. Raises OptionError where the grammar cannot be read, or has texts that never end."""
        name = _NAMES[grammar.kind]
        try:
            with self._lock:
                compiled = self._compiled(grammar)
        except (RuntimeError, ValueError, TypeError) as error:  # of xgrammar, which has no class of its own for all
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
        return Matcher(self._package.GrammarMatcher(compiled), self._vocabulary, self._stop_tokens)

    def _compiled(self, grammar: Grammar) -> Any:
        if grammar.kind == "json_schema":
            return self._compiler.compile_json_schema(grammar.text, max_whitespace_cnt=_WHITESPACE)
        if grammar.kind == "regex":
            return self._compiler.compile_regex(grammar.text)
        return self._compiler.compile_grammar(grammar.text)


class Matcher:
    """Follows one text, token by token.

    Attributes:
        allowed: which tokens may come next, bool (vocabulary,); None: all.
        ended: whether nothing may come any more but the end.
    """

    def __init__(self, matcher: Any, vocabulary: int, stop_tokens: tuple[int, ...]) -> None:
        self._matcher, self._vocabulary, self._stop_tokens = matcher, vocabulary, list(stop_tokens)
        self._bits = np.zeros((1, -(-vocabulary // 32)), np.int32)
        self.allowed: Mask | None = None
        self.ended = False
        self._next()

    def accept(self, token: int) -> None:
        """A token was chosen, and not one that ends the text."""
        if not self._matcher.accept_token(token):
            raise InputError("the grammar does not allow the token that was chosen")
        self._next()

    def _next(self) -> None:
        if not self._matcher.fill_next_token_bitmask(self._bits):
            self.allowed = None
            return
        bits = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little", count=self._vocabulary)
        allowed = bits.astype(np.bool_)
        others = allowed.copy()
        others[self._stop_tokens] = False
        self.allowed, self.ended = allowed, not others.any()
        if self.ended and not allowed.any() and not self._matcher.is_completed():
            raise InputError(
                "the grammar allows no token here: the model's vocabulary does not have what it asks for",
                "change the grammar",
            )
