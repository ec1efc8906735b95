"""`EmbeddingCache`: a cache of rows, for models whose outputs for a row depend only on that row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.errors import OptionError
from compiler.serving.caches.digests import row_digests
from compiler.serving.caches.memory import Answer, Clock, MemoryStore
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.parts import Parts
from compiler.serving.request import Array, Request, Response, Timing
from compiler.serving.rows import check_batched, row_count, with_rows
from compiler.serving.service import Service, Wrapper

_NAME = "embedding"


@dataclass(frozen=True, kw_only=True)
class EmbeddingCacheOptions:
    """Options of an embedding cache.

    Attributes:
        max_bytes: maximum size of cached rows in memory.
        max_age: seconds after which a row is computed again; None: never.
        mask: the input that is 1 for tokens and 0 for padding. Its trailing zero columns are ignored, so that a row is
            found whatever the length of its batch; its values are those of the first such batch, equal up to rounding.
            None: padding is part of the row.
    """

    max_bytes: int = 256 << 20
    max_age: float | None = None
    mask: str | None = None


class EmbeddingCache(Wrapper):
    """A cache by row: only the uncached rows of a batch are computed, duplicates once."""

    def __init__(
        self,
        inner: Service,
        options: EmbeddingCacheOptions | None = None,
        observer: Observer = NO_OBSERVER,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """Raises OptionError if `mask` is not an input."""
        super().__init__(inner)
        self._options = options if options is not None else EmbeddingCacheOptions()
        if self._options.mask is not None and self._options.mask not in {each.name for each in inner.inputs}:
            raise OptionError(f"mask={self._options.mask!r} is not an input of model {inner.name!r}")
        self._observer = observer
        self._kept: MemoryStore[Answer] = MemoryStore(self._options.max_bytes, self._options.max_age, clock)
        self._coming: dict[str, asyncio.Future[Answer]] = {}

    async def start(self) -> None:
        """Start the inner service. Raises OptionError if the model's tensors do not begin with the batch, or its
        outputs are not of one size per row."""
        await self.inner.start()  # a batcher determines then which modules have a batch
        check_batched(self.inner, "an embedding cache")
        for output in self.inner.outputs:
            if any(isinstance(size, str) for size in output.shape[1:]):
                raise OptionError(
                    f"an embedding cache needs rows of one size, and output {output} has another symbolic dimension",
                    "use the exact cache for this model, or let it pool over the tokens",
                )

    async def infer(self, request: Request) -> Response:
        """Compute the unknown rows, wait for rows that other requests compute, and join all of them."""
        count = row_count(request.inputs)
        if request.traced or not count:
            return await self.inner.infer(request)
        keys = self._keys(request, count)
        known: dict[str, Answer] = {}
        timing, computed = Timing(), 0
        while True:
            coming, missing = self._sorted(keys, request, known)
            if not coming and not missing:
                break
            if missing:
                timing = await self._compute(missing, request, known)
                computed += len(missing)
            # A row whose computation by another request failed is missing in the next round.
            if coming:
                await asyncio.wait(coming.values())
            for key, future in coming.items():
                if not future.cancelled() and future.result().accuracy >= request.level.min_accuracy:
                    known[key] = future.result()
        self._observer.observe_cache(self.name, _NAME, count - computed, count)
        return _assembled([known[key] for key in keys], timing, count - computed)

    def _sorted(
        self, keys: Sequence[str], request: Request, known: dict[str, Answer]
    ) -> tuple[dict[str, asyncio.Future[Answer]], dict[str, int]]:
        """Add cached rows to `known`; return those that others are computing, and the missing ones with their row."""
        coming: dict[str, asyncio.Future[Answer]] = {}
        missing: dict[str, int] = {}
        for row, key in enumerate(keys):
            if key in known:
                continue
            found = self._kept.get(key)
            if found is not None and found.accuracy >= request.level.min_accuracy:
                known[key] = found
            elif key in self._coming:
                coming[key] = self._coming[key]
            else:
                missing.setdefault(key, row)
        return coming, missing

    def _keys(self, request: Request, count: int) -> list[str]:
        if self._options.mask is None or self._options.mask not in request.inputs:
            return row_digests(self.identity, request.inputs, request.outputs, count)
        mask = request.inputs[self._options.mask]
        keys = []
        for row in range(count):
            used = np.flatnonzero(mask[row])
            width = int(used[-1]) + 1 if used.size else 0
            trimmed = {name: _trimmed(array[row : row + 1], mask, width) for name, array in request.inputs.items()}
            keys += row_digests(self.identity, trimmed, request.outputs, 1)
        return keys

    async def _compute(self, missing: Mapping[str, int], request: Request, known: dict[str, Answer]) -> Timing:
        """Compute rows and add them to `known`; other requests for them wait for the futures."""
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[Answer]] = {key: loop.create_future() for key in missing}
        self._coming.update(futures)
        try:
            response = await self.inner.infer(with_rows(request, list(missing.values())))
            for position, (key, future) in enumerate(futures.items()):
                outputs = {name: np.array(array[position]) for name, array in response.outputs.items()}
                known[key] = answer = Answer(outputs, response.served_by, dict(response.notes))
                future.set_result(answer)
                if not response.notes.get("degraded"):
                    self._kept.put(key, answer, answer.nbytes)
        finally:
            for key, future in futures.items():
                future.cancel()
                del self._coming[key]
        return response.timing


def _assembled(rows: Sequence[Answer], timing: Timing, hits: int) -> Response:
    outputs: dict[str, Array] = {name: np.stack([row.outputs[name] for row in rows]) for name in rows[0].outputs}
    notes: dict[str, str | float] = {**min(rows, key=lambda row: row.accuracy).notes, "cached_rows": float(hits)}
    served = "+".join(sorted({row.served_by for row in rows}))
    return Response(outputs, served, timing, _NAME if hits == len(rows) else None, notes)


def _trimmed(row: Array, mask: Array, width: int) -> Array:
    """Remove the token padding of a row; inputs of another length are unchanged."""
    return row[:, :width] if row.ndim > 1 and row.shape[1] == mask.shape[1] else row


def build(options: EmbeddingCacheOptions, inner: Service, parts: Parts) -> Service:
    """Build the cache around `inner`."""
    return EmbeddingCache(inner, options, parts.observer)
