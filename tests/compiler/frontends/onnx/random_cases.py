"""Random nodes of each operator: shapes with sizes of 0 and 1, every attribute, many element types."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.compiler.frontends.onnx.support import Case

Generator = np.random.Generator
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float32", "float64", "float16")
_MAKERS: dict[str, Callable[[Generator, str], Case]] = {}


def makes(*operators: str) -> Callable[[Callable[[Generator, str], Case]], Callable[[Generator, str], Case]]:
    """Register a function that makes random cases of these operators."""

    def register(maker: Callable[[Generator, str], Case]) -> Callable[[Generator, str], Case]:
        _MAKERS.update(dict.fromkeys(operators, maker))
        return maker

    return register


def load() -> None:
    """Import the modules that hold the makers."""
    for name in ("elementwise", "shapes", "reductions"):
        importlib.import_module(f"tests.compiler.frontends.onnx.random_{name}")


def operators() -> list[str]:
    """The operators with random cases."""
    load()
    return sorted(_MAKERS)


def random_case(operator: str, random: Generator) -> Case:
    """Make a random case of one operator."""
    load()
    return _MAKERS[operator](random, operator)


def values(random: Generator, dtype: str, shape: tuple[int, ...], low: float = -4, high: float = 4) -> np.ndarray:
    """Random elements of a type; integers are small, and occasionally at their limits."""
    if dtype == "bool":
        return np.asarray(random.random(shape) > 0.5)
    if dtype.startswith("float"):
        return np.asarray(random.uniform(low, high, shape), dtype)
    limits = np.iinfo(dtype)
    array = np.asarray(random.integers(max(limits.min, int(low * 3)), int(high * 3), shape), dtype)
    extreme = random.random(shape) < 0.05
    limit = np.where(random.random(shape) < 0.5, np.array(limits.min, dtype), np.array(limits.max, dtype))
    return np.where(extreme, limit, array).astype(dtype)


def shape(random: Generator, low: int = 0, high: int = 4) -> tuple[int, ...]:
    """A shape of `low` to `high` axes."""
    rank = int(random.integers(low, high + 1))
    return tuple(int(random.choice([0, 1, 2, 3, 5], p=[0.03, 0.2, 0.27, 0.3, 0.2])) for _ in range(rank))


def full_shape(random: Generator, low: int = 1, high: int = 4) -> tuple[int, ...]:
    """A shape without a size of 0."""
    return tuple(max(size, 1) for size in shape(random, low, high))


def broadcastable(random: Generator, target: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to the target: leading axes left out, sizes put to 1."""
    start = int(random.integers(0, len(target) + 1))
    return tuple(1 if random.random() < 0.3 and size else size for size in target[start:])


def pick(random: Generator, *choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def axis_of(random: Generator, rank: int) -> int:
    return int(random.integers(-rank, rank))
