"""`BatchOptions`: how a batcher puts requests together."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import OptionError


@dataclass(frozen=True)
class BatchOptions:
    """Options of batching requests.

    Attributes:
        max_batch_size: rows of a batch at most; a request with more is run in parts.
        max_wait_ms: how long a batch with less than `min_batch_size` rows waits for more.
        min_batch_size: rows that are worth waiting for.
        max_queue: rows that may wait; more are refused (`OverloadedError`).
        enabled: False runs each request alone.
    """

    max_batch_size: int = 32
    max_wait_ms: float = 0.0
    min_batch_size: int = 1
    max_queue: int = 1024
    enabled: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "min_batch_size", "max_queue"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not 0 <= self.max_wait_ms < float("inf"):
            raise OptionError(f"max_wait_ms must be a number of at least 0, not {self.max_wait_ms!r}")
        if self.min_batch_size > self.max_batch_size:
            raise OptionError(f"min_batch_size {self.min_batch_size} is above max_batch_size {self.max_batch_size}")
