"""What a JSON schema asks of the package that compiles it: nesting and repetitions, its patterns' included."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compiler.serving.limits import Limits

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_ATOM = re.compile(r"[^\\\[\](){}]+|\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<least>\d*)(?P<comma>,?)(?P<most>\d*)\}|.", re.DOTALL)
_DIGITS = 10  # of a number of repetitions that are read: the limit is below what is left out


def check_schema(schema: Mapping[str, Any], limits: Limits) -> None:
    """Raise LimitError where a schema is nested too deeply, or repeats an element too often."""
    waiting: list[tuple[Any, int, int]] = [(schema, 1, 1)]
    while waiting:
        value, depth, repeated = waiting.pop()
        limits.check("grammar_nesting", depth)
        if isinstance(value, Mapping):
            counts = [value[name] for name in _COUNTS if isinstance(value.get(name), int | float)]
            repeated = _checked(repeated * max([1, *counts]), limits)
            texts = [value.get("pattern"), *(value["patternProperties"] if _has_patterns(value) else ())]
            for text in texts:
                if isinstance(text, str):
                    _checked(repeated * _pattern_repetitions(text, depth, limits), limits)
        children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        waiting += [(each, depth + 1, repeated) for each in children if isinstance(each, Mapping | list)]


def _has_patterns(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("patternProperties"), Mapping)


def _checked(repeated: float, limits: Limits) -> int:
    whole = int(min(repeated, 1 << 62))
    limits.check("grammar_repetitions", whole)
    return whole


def _pattern_repetitions(pattern: str, depth: int, limits: Limits) -> int:
    """How often a regular expression repeats an element at most.

    An element without an upper bound counts by its lower one, since it takes a loop. Raises LimitError where groups are
    nested too deeply; `depth`: of the schema around them.
    """
    groups = [1]  # repetitions within each open group
    last = 1
    for match in _ATOM.finditer(pattern):
        text = match.group()
        if text == "(":
            groups.append(1)
            limits.check("grammar_nesting", depth + len(groups) - 1)
            last = 1
        elif text == ")" and len(groups) > 1:
            last = groups.pop()
        elif match["least"] or match["most"]:
            last *= max(1, *(int(each[:_DIGITS]) for each in (match["least"], match["most"]) if each))
        else:
            last = 1
        groups[-1] = max(groups[-1], last)
    return max(groups)
