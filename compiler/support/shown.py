"""`shown`: untrusted values in messages, with bounded effort for any size and nesting."""

from __future__ import annotations

import reprlib
from itertools import islice
from typing import Any

_MAX_LENGTH = 80


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, _MAX_LENGTH, _MAX_LENGTH

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Like the base method, which sorts all keys, but without sorting."""
        if not x or level <= 0:
            return "{...}" if x else "{}"
        some = (f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in islice(x.items(), 4))
        return f"{{{', '.join(some)}{', ...' if len(x) > 4 else ''}}}"


_SHORT = _Short()


def shown(value: object) -> str:
    """A value as text for a message, truncated if it is long."""
    text = _SHORT.repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."
