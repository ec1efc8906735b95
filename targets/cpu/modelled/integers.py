"""Values of integers of LLVM IR at sampled iterations of the loops around them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from targets.cpu.modelled.ir import Function

Numbers = NDArray[np.float64]
_FLAGS = re.compile(r"\b(nuw|nsw|nneg|disjoint|samesign|exact|tail|inbounds|range\([^)]*\)) ?")
_BINARY = re.compile(r"^(\w+) i(\d+) (\S+), (\S+)$")
_COMPARE = re.compile(r"^icmp (\w+) i(\d+) (\S+), (\S+)$")
_CAST = re.compile(r"^(sext|zext|trunc) i(\d+) (\S+) to i(\d+)$")
_FREEZE = re.compile(r"^freeze i\d+ (\S+)$")
_SELECT = re.compile(r"^select i1 (\S+), i\d+ (\S+), i\d+ (\S+)$")
_EXTREME = re.compile(r"^call (?:\S+ )*?i\d+ @llvm\.(smin|smax|umin|umax)\.i\d+\(i\d+ (\S+), i\d+ (\S+)\)$")
_PHI = re.compile(r"\[ (\S+), %([\w.$-]+) \]")

_ARITHMETIC: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "add": lambda a, b: a + b,
    "or": lambda a, b: a + b,  # of disjoint bits: additions that LLVM rewrote
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "shl": lambda a, b: a * 2.0**b,
    "lshr": lambda a, b: np.floor(a / 2.0**b),
    "ashr": lambda a, b: np.floor(a / 2.0**b),
    "sdiv": lambda a, b: np.trunc(a / b),
    "udiv": lambda a, b: np.floor(a / b),
    "srem": lambda a, b: np.fmod(a, b),
    "urem": lambda a, b: np.fmod(a, b),
    "smin": np.minimum,
    "umin": np.minimum,
    "smax": np.maximum,
    "umax": np.maximum,
}
_COMPARISONS: dict[str, Callable[[Numbers, Numbers], NDArray[np.bool_]]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


class Integers:
    """Evaluates values of one function over samples.

    Args:
        samples: how many.
        given: arrays of values that are known from outside, by name.
        induction: of a loop's header, the number of the iteration in each sample; KeyError while it is not known.
        latches: latches of a header, the names of the blocks that jump back to it.
    """

    def __init__(
        self,
        function: Function,
        samples: int,
        given: dict[str, Numbers],
        iterations: dict[str, Numbers],
        latches: dict[str, set[str]],
    ) -> None:
        self._function, self._samples, self._given = function, samples, given
        self.iterations, self._latches = iterations, latches
        self._known: dict[str, Numbers] = {}

    def value(self, name: str) -> Numbers:
        """The value in each sample; NaN where it is not known."""
        if not name.startswith("%"):
            return np.full(self._samples, _literal(name))
        if name in self._given:
            return self._given[name]
        if name not in self._known:
            self._known[name] = np.full(self._samples, np.nan)  # of what depends on itself
            self._known[name] = self._evaluate(name)
        return self._known[name]

    def forget(self) -> None:
        """Drop what was computed: an iteration has become known."""
        self._known.clear()

    def _evaluate(self, name: str) -> Numbers:
        unknown = np.full(self._samples, np.nan)
        raw = self._function.values.get(name)
        if raw is None:
            return unknown
        if raw.startswith("phi "):
            return self._phi(name, raw)
        text = _without_flags(raw)
        if found := _BINARY.match(text):
            operation = _ARITHMETIC.get(found[1])
            if found[1] == "and":
                return self._masked(int(found[2]), found[3], found[4])
            if found[1] == "xor" and found[4] in ("true", "-1"):
                return (1.0 if found[2] == "1" else -1.0) - self.value(found[3])
            if operation is None or (found[1] == "or" and "disjoint" not in raw):
                return self._logical(found[1], found[2], found[3], found[4])
            with np.errstate(all="ignore"):
                return operation(self.value(found[3]), self.value(found[4]))
        if text.startswith("icmp eq ptr ") and text.endswith(", null"):
            return np.zeros(self._samples)  # memory was there
        if found := _COMPARE.match(text):
            return self._compared(found[1], int(found[2]), found[3], found[4])
        if found := _CAST.match(text):
            inner = self.value(found[3])
            return _wrapped(inner, int(found[2])) if found[1] == "zext" and found[2] != "1" else inner
        if found := _FREEZE.match(text):
            return self.value(found[1])
        if found := _SELECT.match(text):
            condition, yes, no = (self.value(found[index]) for index in (1, 2, 3))
            return np.where(np.isnan(condition), np.nan, np.where(condition > 0, yes, no))
        if found := _EXTREME.match(text):
            return _ARITHMETIC[found[1]](self.value(found[2]), self.value(found[3]))
        return unknown

    def _masked(self, bits: int, left: str, right: str) -> Numbers:
        if bits == 1:
            return self.value(left) * self.value(right)
        a, mask = self.value(left), _literal(right)
        if np.isnan(mask):
            return np.full(self._samples, np.nan)
        whole = int(mask) & ((1 << bits) - 1)
        low = whole & -whole if whole else 1
        high = whole + low
        if high & (high - 1):  # not one run of bits
            known = ~np.isnan(a)
            result = np.full(self._samples, np.nan)
            result[known] = (a[known].astype(np.int64) & whole).astype(float)
            return result
        kept = a if high == 1 << bits else np.mod(a, high)
        return np.floor(kept / low) * low

    def _logical(self, name: str, bits: str, left: str, right: str) -> Numbers:
        if bits == "1" and name in ("or", "xor"):
            a, b = self.value(left), self.value(right)
            return np.maximum(a, b) if name == "or" else np.abs(a - b)
        return np.full(self._samples, np.nan)

    def _compared(self, predicate: str, bits: int, left: str, right: str) -> Numbers:
        a, b = self.value(left), self.value(right)
        if predicate.startswith("u"):
            a, b = _wrapped(a, bits), _wrapped(b, bits)
        result = _COMPARISONS[predicate[-2:]](a, b).astype(float)
        return np.where(np.isnan(a) | np.isnan(b), np.nan, result)

    def _phi(self, name: str, text: str) -> Numbers:
        """A loop's induction variable at a known iteration: its start plus that many steps."""
        header = self._function.home[name]
        unknown = np.full(self._samples, np.nan)
        edges = _PHI.findall(text)
        if header not in self._latches:
            values = [self.value(each) for each, _ in edges]
            same = all(np.array_equal(values[0], each) for each in values[1:])
            return values[0] if same else unknown
        entering = [each for each, source in edges if source not in self._latches[header]]
        again = [each for each, source in edges if source in self._latches[header]]
        if header in self.iterations and len(set(again)) == 1 and not again[0].startswith("%"):
            return np.where(self.iterations[header] == 0, self.value(entering[0]), _literal(again[0]))
        step = self._step(name, again[0]) if len(set(again)) == 1 and len(set(entering)) == 1 else None
        if step is None or header not in self.iterations:
            return unknown
        return self.value(entering[0]) + step * self.iterations[header]

    def _step(self, name: str, following: str) -> float | None:
        """Step of an induction variable, on whichever way through the loop."""
        text = _without_flags(self._function.values.get(following, ""))
        if text.startswith("phi ") and self._function.home[following] not in self._latches:
            steps = {self._step(name, each) for each, _ in _PHI.findall(text)}
            return steps.pop() if len(steps) == 1 else None
        found = _BINARY.match(text)
        if not found or name not in (found[3], found[4]) or found[1] not in ("add", "sub", "or"):
            return None
        step = _literal(found[4] if found[3] == name else found[3])
        return None if np.isnan(step) else -step if found[1] == "sub" else step


@lru_cache(maxsize=65536)
def _without_flags(text: str) -> str:
    return _FLAGS.sub("", text).strip()


@lru_cache(maxsize=65536)
def _literal(text: str) -> float:
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(int(text))
    except ValueError:
        return float("nan")


def _wrapped(values: Numbers, bits: int) -> Numbers:
    """Unsigned integers."""
    return np.where(values < 0, values + 2.0**bits, values)
