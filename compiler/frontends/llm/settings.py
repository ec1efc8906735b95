"""The values of a config.json, validated when read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError, OptionError

MAX_SIZE = (1 << 31) - 1


class Settings:
    """A config.json whose values are validated when read.

    `defaults` are the values of missing keys; `aliases` are the model type's own key names.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        path: Path,
        defaults: Mapping[str, Any],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._values, self.path, self._defaults = values, path, defaults
        self._aliases = aliases or {}

    def get(self, key: str) -> Any:
        """Return a value; None if there is none."""
        for name in (self._aliases.get(key, key), key):
            if self._values.get(name) is not None:
                return self._values[name]
        return self._defaults.get(key)

    def refuse(self, key: str, what: str, *, unless: object = False) -> None:
        """Raise OptionError if a value requires an unsupported feature: it is neither missing nor `unless`."""
        value = self.get(key)
        if value is not None and value != unless:
            raise OptionError(f"{self.path}: {what} is not supported ({key!r} is {str(value)[:80]!r})")

    def flag(self, key: str) -> bool:
        """Return a boolean, by default False."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return bool(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0."""
        value = self.number(key, default)
        if value <= 0:
            raise self._wrong(key, value, "a number above 0")
        return value

    def optional(self, key: str) -> float | None:
        """Return a finite number, or None."""
        return None if self.get(key) is None else self.number(key)

    def size(self, key: str, default: int | None = None, *, most: int = MAX_SIZE) -> int:
        """Return an integer from 1 to `most`, which may be a list that repeats it for each layer."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self._wrong(key, value, "a size" if most == MAX_SIZE else f"a size of at most {most}")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """Return an object, by default empty."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return dict(value or {})

    def each_layer(self, key: str, count: int) -> list[Any] | None:
        """Return a list with an entry for each layer, which may be given as one number for all, or None."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = [value] * count
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(key, value, f"a list of {count} layers")
        return value

    def layer_sizes(self, key: str, count: int) -> list[int] | None:
        """Return a list with a size for each layer, or None if there is none."""
        if not isinstance(self.get(key), list):
            return None
        sizes = self.each_layer(key, count) or []
        for value in sizes:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
                raise self._wrong(key, value, "a size")
        return sizes

    def _wrong(self, key: str, value: object, wanted: str) -> InvalidModelError:
        what = "is missing" if value is None else f"is {str(value)[:80]!r}, not {wanted}"
        return InvalidModelError(f"{self.path}: {key!r} {what}")
