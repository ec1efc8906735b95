"""Structured output: texts match their grammar, alone and in batches, and invalid grammars give one error."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from compiler.errors import OptionError
from compiler.generation import Grammar, LanguageModel, Scheduler
from compiler.generation.grammar import Bits, Grammars, Masks, Matcher, endless_rule

pytest.importorskip("xgrammar")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,6}$"}, "size": {"enum": [1, 2, 3]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


def test_texts_match_their_grammar(joined: LanguageModel) -> None:
    for seed in range(3):
        settings: dict[str, Any] = {"max_new_tokens": 80, "temperature": 1.5, "seed": seed}
        found = json.loads(joined.generate("abc", grammar=SCHEMA, **settings).text)
        assert set(found) == {"name", "size"}
        number = joined.generate("abc", grammar=Grammar.regex("[0-9]{3}-[a-f]+x"), **settings).text
        assert re.fullmatch(r"\d{3}-[a-f]+x?", number)
        words = joined.generate("abc", grammar='root ::= "yes" | "né" | "no" root', **settings)
        assert re.fullmatch("(no)*(yes|né)", words.text)
        assert words.finish_reason == "stop"


def test_guesses_and_neighbours_change_nothing(joined: LanguageModel) -> None:
    grammar = Grammar.regex("(ab|cd)+[.]")
    wanted = joined.generate("xyz", grammar=grammar, max_new_tokens=24)
    assert joined.generate("xyz", grammar=grammar, max_new_tokens=24, speculative=6).tokens == wanted.tokens
    with Scheduler(joined, max_sequences=3) as scheduler:
        free = scheduler.submit("xyz", max_new_tokens=24)
        bound = scheduler.submit("xyz", grammar=grammar, max_new_tokens=24, speculative=4)
        assert bound.result().tokens == wanted.tokens
        assert free.result().tokens == joined.generate("xyz", max_new_tokens=24).tokens


class _Late:
    """Masks from another process, which are ready only after a number of requests."""

    def __init__(self, masks: Masks, late: int) -> None:
        self._masks, self._late, self._left = masks, late, -1

    def accept(self, token: int) -> None:
        self._masks.accept(token)
        self._left = self._late

    def wait(self, seconds: float) -> bool:
        self._left -= 1
        return self._left < 0

    def next(self) -> tuple[Bits | None, bool]:
        assert self._left < 0
        return self._masks.next()


@pytest.mark.parametrize("late", [1, 2, 5])
@pytest.mark.parametrize(("most", "reason"), [(24, "stop"), (3, "length"), (5, "stop")])
def test_the_model_runs_while_a_grammar_answers(joined: LanguageModel, late: int, most: int, reason: str) -> None:
    grammar = Grammar.regex("abcd[.]")
    wanted = joined.generate("xyz", grammar=grammar, max_new_tokens=most)
    description = joined.description
    assert joined.tokenizer is not None
    grammars = Grammars(joined.tokenizer, description.vocabulary, description.stop_tokens)
    with Scheduler(joined, max_sequences=3) as scheduler:
        free = scheduler.submit("xyz", max_new_tokens=24)
        masks = _Late(grammars.masks(grammars.compile(grammar)), late)
        matcher = Matcher(masks, description.vocabulary, description.stop_tokens)
        bound = scheduler.submit("xyz", matcher=matcher, max_new_tokens=most)
        assert (bound.result().tokens, bound.result().finish_reason) == (wanted.tokens, reason)
        assert wanted.finish_reason == reason
        assert free.result().tokens == joined.generate("xyz", max_new_tokens=24).tokens


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= "a', "the grammar cannot be used"),
        ("root ::= other", "the grammar cannot be used"),
        ('root ::= "a" root', "never|can ever end: 'root'"),
        ('root ::= "x" | "a" trap\ntrap ::= "b" trap', "can ever end: 'trap'"),
        (Grammar.regex("[0-9"), "the regular expression cannot be used"),
        ({"type": "nothing"}, "the JSON schema cannot be used"),
        (Grammar.json_schema("{"), "the JSON schema cannot be used"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "can ever end"),
        (5, "grammar must be"),
    ],
)
def test_grammars_that_cannot_be_used(joined: LanguageModel, grammar: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        joined.generate("abc", grammar=grammar)


@pytest.mark.parametrize(
    ("grammar", "endless"),
    [
        ('root ::= ((a) | (b))\na ::= ((a b))\nb ::= (("x"))', "a"),
        ('root ::= ((root{0, 3} "(" [^)|]*))', None),
        ("root ::= ((root{1, 3}))", "root"),
        ('root ::= (("a" root_1))\nroot_1 ::= ("" | ([\\]"] root_1))', None),
        ('root ::= ((x)*)\nx ::= (("\\"" x))', "x"),
    ],
)
def test_rules_without_an_end(grammar: str, endless: str | None) -> None:
    assert endless_rule(grammar) == endless
