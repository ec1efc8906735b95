"""Sizes that depend on symbolic dimensions, written as short formulas such as "2*batch*(seq + 1)*384".

    sum      a product, followed by any number of "+" or "-" and a product
    product  a factor, followed by any number of "*", "//" or "%" and a factor
    factor   "-" factor, an integer, a name, "(" sum ")", or "min" or "max" "(" sum, "," sum, ... ")"

Division rounds down, and a remainder has its divisor's sign, as in Python. Every value, including intermediate ones, is
a signed 64-bit integer. The C++ runtime follows the same rules (`device/cpp/formula.cc`): change both, and the table of
test cases for both (`tests/compiler/runtime/requirement_cases.json`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

_TOKEN = re.compile(
    r" *(?:[0-9]+|(?:min|max) *\(|[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*|//|[-+*%(),])"
)
_NAME = re.compile(r"(?:min|max)(?= *\()|(?P<name>[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*)")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "//": 2, "%": 2, "negate": 3}
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "//": lambda left, right: left // right,
    "%": lambda left, right: left % right,
}
_FUNCTIONS: dict[str, Callable[[list[int]], int]] = {"min": min, "max": max}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_MAX_DIGITS = 19
_SHOWN = 80
_MAX_EXPONENT = 16

Step = tuple[str, int | str]
"""An item of a formula in postfix order: "number" or "name" with its value; "call" with the operator; a function with
its number of arguments."""


class FormulaError(ValueError):
    """A text is not a formula, or a formula has no value for the given sizes."""


class Formula:
    """A parsed formula. Raises FormulaError if the text contains anything that is not part of a formula."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._steps = _Parser(text).steps

    @property
    def names(self) -> set[str]:
        """The names of the dimensions in the formula."""
        return {str(value) for kind, value in self._steps if kind == "name"}

    def value(self, sizes: Mapping[str, int]) -> int:
        """The formula's value. Raises FormulaError if a name has no size, a divisor is zero, or a value does not fit in
        64 bits."""
        stack: list[int] = []
        for kind, value in self._steps:
            if kind == "number":
                result = int(value)
            elif kind == "name":
                if value not in sizes:
                    raise FormulaError(f"the size of {value!r} is not known")
                result = sizes[str(value)]
            elif kind == "call":
                result = self._called(str(value), stack)
            else:
                count = int(value)
                result = _FUNCTIONS[kind](stack[-count:])
                del stack[-count:]
            if not _INT64_MIN <= result <= _INT64_MAX:
                raise FormulaError(f"{_shown(self.text)} has a value of more than 64 bits")
            stack.append(result)
        return stack[0]

    def _called(self, operator: str, stack: list[int]) -> int:
        right = stack.pop()
        if operator == "negate":
            return -right
        if right == 0 and operator in ("//", "%"):
            raise FormulaError(f"{_shown(self.text)} divides by zero")
        return _OPERATIONS[operator](stack.pop(), right)


class _Parser:
    """Converts a text to postfix order with a stack of operators and open parentheses (the shunting-yard algorithm)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.steps: list[Step] = []
        self._open: list[tuple[str, int]] = []  # operators; "(", "min(" and "max(" with the number of their arguments
        after_operand = False
        for token in self._tokens():
            after_operand = self._operator(token) if after_operand else self._operand(token)
        self._reduce(0)
        if not after_operand or self._open:
            raise self._error()

    def _tokens(self) -> list[str]:
        tokens = []
        position, end = 0, len(self._text.rstrip(" "))
        while position < end:
            match = _TOKEN.match(self._text, position, end)
            if match is None:
                raise self._error()
            tokens.append(match.group().replace(" ", ""))
            position = match.end()
        return tokens

    def _operand(self, token: str) -> bool:
        """Process a token where an operand is expected; True if it is a complete operand."""
        if token == "-":
            self._open.append(("negate", 1))
        elif token.endswith("("):
            self._open.append((token, 1))
        elif token in _OPERATIONS or token in (")", ","):
            raise self._error()
        elif token[0] in "0123456789":
            if len(token) > _MAX_DIGITS or int(token) > _INT64_MAX:
                raise self._error()
            self.steps.append(("number", int(token)))
            return True
        else:
            self.steps.append(("name", token))
            return True
        return False

    def _operator(self, token: str) -> bool:
        """Process a token that follows an operand; True if the text so far is still a complete operand."""
        if token in _OPERATIONS:
            self._reduce(_PRECEDENCE[token])
            self._open.append((token, 2))
            return False
        self._reduce(0)
        if token not in (")", ",") or not self._open:
            raise self._error()
        opening, count = self._open.pop()
        if token == ")":
            if opening != "(":
                self.steps.append((opening[:-1], count))
            return True
        if opening == "(":
            raise self._error()
        self._open.append((opening, count + 1))
        return False

    def _reduce(self, precedence: int) -> None:
        """Emit the operators on top of the stack that bind at least as strongly."""
        while self._open and _PRECEDENCE.get(self._open[-1][0], -1) >= precedence:
            self.steps.append(("call", self._open.pop()[0]))

    def _error(self) -> FormulaError:
        return FormulaError(f"not a formula: {_shown(self._text)}")


def _shown(text: str) -> str:
    return repr(text[:_SHOWN])


@lru_cache(1024)
def parsed(text: str) -> Formula:
    """Parse a formula. Raises FormulaError like `Formula`."""
    return Formula(text)


def evaluate(formula: str, sizes: Mapping[str, int]) -> int:
    """The value of a formula. Raises FormulaError as for `Formula` and `Formula.value`."""
    return parsed(formula).value(sizes)


def nominal_size(formula: str) -> int:
    """The smallest power of two for which the formula has a value when all its sizes have that value: 1, unless it then
    divides by zero. Raises FormulaError if there is none up to 65,536."""
    for exponent in range(_MAX_EXPONENT + 1):
        try:
            parsed(formula).value(dict.fromkeys(parsed(formula).names, 1 << exponent))
        except FormulaError:
            if exponent == _MAX_EXPONENT:
                raise
        else:
            break
    return 1 << exponent


def names_in(formula: str) -> set[str]:
    """The names of dimensions in a formula. Raises FormulaError like `Formula`."""
    return parsed(formula).names


def with_names(formula: str, text_of: Callable[[str], str]) -> str:
    """A formula with each dimension name replaced by another text, a name or a number."""
    return _NAME.sub(lambda found: text_of(found["name"]) if found["name"] else found.group(), formula)
