"""Attention over a cache in float64, and random cases of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from schedules.attention.cache.call import AttentionOptions, cached_attention
from tests.schedules.harness import Array, Build


@dataclass(frozen=True)
class Case:
    """Sizes and options; `position` or `length` may be one number or one a sample, None to leave it out."""

    queries: int = 1
    heads: int = 4
    key_heads: int = 2
    size: int = 16
    value_size: int = 16
    capacity: int = 40
    batch: int = 1
    position: int | tuple[int, ...] | None = 0
    dtype: str = "float32"
    cache: str = "float32"
    bias: tuple[int, int, int, int] | None = None
    mask: bool = False
    sinks: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def causal(self) -> bool:
        return bool(self.options.get("causal", True))

    def arrays(self, seed: int = 0) -> dict[str, Array]:
        """Operands by role; rows of the cache that no query may see are NaN."""
        random = np.random.default_rng(seed)

        def normal(*shape: int) -> Array:
            return random.standard_normal(shape).astype("float32")

        found = {"query": normal(self.batch, self.queries, self.heads, self.size).astype(_numpy(self.dtype))}
        scales = []
        for role, size in (("key", self.size), ("value", self.value_size)):
            rows = normal(self.batch, self.key_heads, self.capacity, size)
            if self.cache == "int8":
                scale = np.abs(rows).max(-1) / 127
                rows = np.rint(rows / scale[..., None]).astype("int8")
                scales.append(scale)
            else:
                for sample in range(self.batch):
                    rows[sample, :, self._rows(sample) :] = np.nan
                rows = rows.astype(_numpy(self.cache))
            found[role] = rows
        if self.position is not None:
            found["position" if self.causal else "length"] = np.array(self.position, "int64")
        if self.bias is not None:
            found["bias"] = random.random(self.bias) > 0.3 if self.mask else normal(*self.bias)
        if self.sinks:
            found["sinks"] = normal(self.heads)
        if scales:
            found |= {"key_scale": scales[0], "value_scale": scales[1]}
        return found

    def build(self) -> Build:
        """Emit the call on these arrays, in their order."""
        names = list(self.arrays())

        def make(builder: Any, *given: Any) -> Any:
            operands = dict(zip(names, given, strict=True))
            scales = operands.pop("key_scale", None), operands.pop("value_scale", None)
            query, key, value = (operands.pop(role) for role in ("query", "key", "value"))
            options: dict[str, Any] = {**operands, **self.options, "scales": None if scales[0] is None else scales}
            return builder.emit(cached_attention(builder, query, key, value, AttentionOptions(**options)))

        return make

    def exact(self, arrays: dict[str, Array]) -> Array:
        """The result in float64."""
        query = arrays["query"].astype("float64")
        key, value = (_widened(arrays, role) for role in ("key", "value"))
        result = np.zeros((self.batch, self.queries, self.heads, self.value_size))
        scale = self.options.get("scale") or 1 / np.sqrt(self.size)
        for b, i, h in np.ndindex(self.batch, self.queries, self.heads):
            first, end = self._range(b, i)
            rows = np.arange(first, end)
            if not len(rows):
                continue
            head = h // (self.heads // self.key_heads)
            scores = key[b, head, rows] @ query[b, i, h] * scale
            if "softcap" in self.options:
                scores = self.options["softcap"] * np.tanh(scores / self.options["softcap"])
            if self.bias is not None:
                at = [0 if size == 1 else point for size, point in zip(self.bias[:3], (b, h, i), strict=True)]
                entries = arrays["bias"][tuple(at)][rows]
                scores = np.where(entries, scores, -np.inf) if self.mask else scores + entries
            sink = [float(arrays["sinks"][h])] if self.sinks else []
            largest = max([*scores, *sink])
            if largest == -np.inf:
                continue
            powers = np.exp(scores - largest)
            total = powers.sum() + sum(np.exp(each - largest) for each in sink)
            result[b, i, h] = powers @ value[b, head, rows] / total
        return result

    def _position(self, sample: int) -> int:
        if self.position is None:
            return self.capacity - self.queries if self.causal else self.capacity
        return self.position[sample] if isinstance(self.position, tuple) else self.position

    def _rows(self, sample: int) -> int:
        rows = self._position(sample) + (self.queries if self.causal else 0)
        limit = self.capacity if self.bias is None else min(self.capacity, self.bias[-1])
        return max(0, min(rows, limit))

    def _range(self, sample: int, query: int) -> tuple[int, int]:
        rows = self._rows(sample)
        if not self.causal:
            return 0, rows
        end = min(self._position(sample) + query + 1, rows)
        window = self.options.get("window")
        return (0 if window is None else max(0, self._position(sample) + query + 1 - window)), end


def _numpy(dtype: str) -> Any:
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def _widened(arrays: dict[str, Array], role: str) -> Array:
    rows = arrays[role].astype("float64")
    return rows * arrays[f"{role}_scale"][..., None] if f"{role}_scale" in arrays else rows
