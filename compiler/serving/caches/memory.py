"""Answers in memory: the least recently used are evicted first, expired ones are not returned."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from compiler.errors import OptionError
from compiler.serving.request import Array

Clock = Callable[[], float]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Answer:
    """Cached part of a response; its arrays are the cache's own. `accuracy`: accuracy of the variant that computed it,
    relative to the reference variant."""

    outputs: Mapping[str, Array]
    served_by: str
    notes: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """See the class; 1 if there are no variants."""
        return float(self.notes.get("accuracy", 1.0))

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in self.outputs.values())


class MemoryStore(Generic[Value]):
    """Values by key, bounded by bytes and by age. Not thread-safe: used in the event loop."""

    def __init__(self, max_bytes: int, max_age: float | None = None, clock: Clock = time.monotonic) -> None:
        """`max_age`: seconds of `clock`; None for no limit. Raises OptionError for limits that are not positive."""
        for name, value in (("max_bytes", max_bytes), ("max_age", max_age)):
            if value is not None and value <= 0:
                raise OptionError(f"a cache's {name} must be above 0, not {value}")
        self._max_bytes, self._max_age, self._clock = max_bytes, max_age, clock
        self._kept: OrderedDict[str, tuple[Value, int, float]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Value | None:
        """Return the value, if present and not too old."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        value, _, stored = entry
        if self._max_age is not None and self._clock() - stored > self._max_age:
            self.remove(key)
            return None
        self._kept.move_to_end(key)
        return value

    def put(self, key: str, value: Value, nbytes: int, age: float = 0.0) -> None:
        """Store a value of a size in bytes that is `age` seconds old, unless it is larger than the store."""
        self.remove(key)
        if nbytes > self._max_bytes:
            return
        self._kept[key] = (value, nbytes, self._clock() - age)
        self.nbytes += nbytes
        while self.nbytes > self._max_bytes:
            self.remove(next(iter(self._kept)))

    def remove(self, key: str) -> None:
        """Remove a value, if present."""
        found = self._kept.pop(key, None)
        if found is not None:
            self.nbytes -= found[1]
