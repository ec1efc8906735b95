"""Checks that every rule of a grammar derives a finite text, reading the form in which xgrammar prints grammars.

rule ::= (("text" [a-z]* other) | (other{2, 3}))
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

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
    """A rule of a printed grammar that matches no finite text; None where there is none."""
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
    """The right side of a rule."""

    def __init__(self, text: str, finite: Mapping[str, bool]) -> None:
        self._tokens = list(_tokens(text))
        self._finite, self._at = finite, 0

    def is_finite(self) -> bool:
        """True if it matches a text that ends, by what is known of other rules."""
        return self._choice()

    def _choice(self) -> bool:
        found = self._sequence()
        while self._take("|"):
            found = self._sequence() or found
        return found

    def _sequence(self) -> bool:
        found = True
        while self._at < len(self._tokens) and self._tokens[self._at] not in ("|", ")"):
            found = self._repeated() and found
        return found

    def _repeated(self) -> bool:
        found = self._single()
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token in ("*", "?", "{0"):
                found = True
            elif token not in ("+", "{"):
                break
            self._at += 1
        return found

    def _single(self) -> bool:
        token = self._tokens[self._at]
        self._at += 1
        if token in ("(", "(="):
            found = self._choice()
            self._take(")")
            return found or token == "(="
        if self._at < len(self._tokens) and self._tokens[self._at] == "(" and token not in self._finite:
            self._skip()  # a construct of xgrammar's own, with arguments
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
    """Names and symbols; texts and characters as "", repetitions as "{" or "{0"."""
    for match in _TOKEN.finditer(text):
        if match["name"] or match["symbol"]:
            yield match["name"] or match["symbol"]
        elif match["repeat"]:
            yield "{0" if int(match["least"]) == 0 else "{"
        else:
            yield ""
