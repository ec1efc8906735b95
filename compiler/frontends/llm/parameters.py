"""The weights of a decoder by role: fused tensors are taken apart, rows are put into the order of this package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import InvalidModelError
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.names import Names
from compiler.frontends.llm.weights import Array, Checkpoint, Linear, Matrix


@dataclass(frozen=True)
class Storage:
    """How a format stores what a decoder has.

    Attributes:
        interleaved: rows of queries and keys are ordered for the rotation of neighbours (GGUF of Llama's kin).
        norm_offset: what is added to the weight of a norm (Gemma's are stored less 1).
        tied: the head is the embedding; None: where there is no other.
        bare_norms: norms that have no weights (OLMo).
    """

    interleaved: bool = False
    norm_offset: float = 0.0
    tied: bool | None = None
    bare_norms: bool = False


class Parameters:
    """Reads the weights of a model as it is built."""

    def __init__(self, checkpoint: Checkpoint, names: Names, config: DecoderConfig, storage: Storage) -> None:
        self._checkpoint, self._names, self._config, self._storage = checkpoint, names, config, storage

    def embedding(self) -> Matrix:
        """(vocabulary, hidden)"""
        config = self._config
        return self._checkpoint.matrix(f"{self._names.embedding}.weight", config.vocabulary, config.hidden)

    def head(self) -> Linear | None:
        """The last product; None where it is the embedding's."""
        name, config = self._names.head, self._config
        if self._storage.tied is True:
            self._checkpoint.ignore([f"{name}.weight"])
            return None
        if self._storage.tied is None and not self._checkpoint.has(f"{name}.weight"):
            return None
        return self._linear(name, config.vocabulary, config.hidden)

    def final_norm(self) -> Array | None:
        """The weight (hidden,); None for 1."""
        return self._norm(self._names.norm, self._config.hidden)

    def norm(self, layer: int, role: str, size: int) -> Array | None:
        """The weight of a norm; None for 1."""
        return self._norm(self._names.of(layer, role), size)

    def has_norm(self, layer: int, role: str) -> bool:
        """Whether a layer has this norm."""
        name = self._names.of(layer, role)
        if self._storage.bare_norms:
            return role in ("attention_norm", "mlp_norm")
        if role in ("q_norm", "k_norm"):
            return name is not None and self._checkpoint.has(f"{name}.weight")
        return name is not None

    def norm_size(self, layer: int, role: str, sizes: tuple[int, ...]) -> int:
        """Which of some sizes the weight of a norm has: of one head, or of all together."""
        for size in sizes:
            if self._checkpoint.shape_is(f"{self._names.of(layer, role)}.weight", (size,)):
                return size
        raise InvalidModelError(f"{self._checkpoint.origin}: {self._names.of(layer, role)!r} has none of sizes {sizes}")

    def queries_keys_values(self, layer: int) -> list[Linear]:
        """The three products, in this order."""
        config = self._config
        widths = [config.queries, config.keys, config.keys]
        q, k, v = self._parts(layer, "qkv", ("q", "k", "v"), widths)
        if self._storage.interleaved:
            q = q.taken(_halves(config.heads, config.head_size))
            k = k.taken(_halves(config.key_heads, config.head_size))
        return [q, k, v]

    def gate_up(self, layer: int) -> list[Linear]:
        """The two products of a gated MLP."""
        return self._parts(layer, "gate_up", ("gate", "up"), [self._config.intermediate] * 2)

    def output(self, layer: int) -> Linear:
        """The product behind attention."""
        return self._role(layer, "o", self._config.hidden, self._config.queries)

    def down(self, layer: int) -> Linear:
        """The last product of the MLP."""
        return self._role(layer, "down", self._config.hidden, self._config.intermediate)

    def _parts(self, layer: int, fused: str, roles: tuple[str, ...], widths: list[int]) -> list[Linear]:
        """Products of their own, or the parts of one."""
        depth = self._config.hidden
        first = self._names.of(layer, roles[0])
        if first is not None and self._checkpoint.has(f"{first}.weight"):
            return [self._role(layer, role, width, depth) for role, width in zip(roles, widths, strict=True)]
        whole = self._names.of(layer, fused)
        if whole is None or not self._checkpoint.has(f"{whole}.weight"):
            raise InvalidModelError(
                f"{self._checkpoint.origin} lacks the tensor '{first or whole}.weight'",
                "the checkpoint is not complete",
            )
        linear = self._linear(whole, sum(widths), depth)
        ends = np.cumsum(widths)
        return [linear.taken(slice(end - width, end)) for end, width in zip(ends, widths, strict=True)]

    def _role(self, layer: int, role: str, rows: int, depth: int) -> Linear:
        name = self._names.of(layer, role)
        assert name is not None
        return self._linear(name, rows, depth)

    def _linear(self, name: str, rows: int, depth: int) -> Linear:
        weight = self._checkpoint.matrix(f"{name}.weight", rows, depth)
        has_bias = self._checkpoint.has(f"{name}.bias")
        return Linear(weight, self._checkpoint.vector(f"{name}.bias", rows) if has_bias else None)

    def _norm(self, name: str | None, size: int) -> Array | None:
        if self._storage.bare_norms:
            return None
        assert name is not None
        return self._checkpoint.vector(f"{name}.weight", size) + np.float32(self._storage.norm_offset)


def _halves(heads: int, size: int) -> Array:
    """The rows in an order in which a rotated pair is half a head apart, where it was side by side."""
    return np.arange(heads * size).reshape(heads, size // 2, 2).swapaxes(1, 2).reshape(-1)
