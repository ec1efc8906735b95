"""Nesting and repetitions of JSON schemas and their patterns."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.serving.app.completion_options import _pattern_repetitions, check_schema
from compiler.serving.limits import LimitError, Limits

LIMITS = Limits(grammar_nesting=20, grammar_repetitions=1000)


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("pattern", "repetitions"),
    [
        ("", 1),
        ("a{3}b{2,5}c{4,}", 5),
        ("abc{7}", 7),
        ("(a{10}){20}", 200),
        ("((a{10}|b{3}){2}c){5}", 100),
        ("(" * 19 + "a" + ")" * 19, 1),
        (r"\(\({9}[(({8}]", 9),
        (")))", 1),
        ("a{99999999999999999999}", 9999999999),
        ("(((", 1),
        ("a{,}{x}", 1),
    ],
)
def test_repetitions_of_patterns(pattern: str, repetitions: int) -> None:
    assert _pattern_repetitions(pattern, 1, LIMITS) == repetitions


@pytest.mark.parametrize(
    "schema",
    [
        _nested(20),
        {"type": "string", "pattern": "(" * 20},
        {"type": "object", "patternProperties": {"(" * 20: {}}},
        {"anyOf": [_nested(19)]},
        {"type": "string", "minLength": 1001},
        {"type": "array", "maxItems": 1e300},
        {"type": "string", "pattern": "(a{100}){100}"},
        {"type": "array", "minItems": 100, "items": {"type": "string", "pattern": "a{11}"}},
        {"type": "array", "minItems": 40, "items": {"type": "array", "minItems": 40, "items": {}}},
    ],
)
def test_schemas_past_the_limits_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(LimitError):
        check_schema(schema, LIMITS)


@pytest.mark.parametrize(
    "schema",
    [
        _nested(19),
        {"type": "string", "minLength": 1000, "pattern": "[a-z]{1,9}"} | {"minLength": 100},
        {"type": "array", "minItems": 30, "items": {"type": "string", "maxLength": 30}},
        {"minItems": True, "minLength": "many", "pattern": 5, "patternProperties": [1]},
        {"$ref": "#"},
    ],
)
def test_other_schemas_pass(schema: dict[str, Any]) -> None:
    check_schema(schema, LIMITS)
