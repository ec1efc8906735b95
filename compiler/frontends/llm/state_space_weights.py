"""The weights of state space models by role, as folders of transformers and GGUF files name and shape them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from compiler.errors import InvalidModelError
from compiler.frontends.llm.weights import Array, Checkpoint, Linear, Matrix

_PREFIX = "backbone.layers.{layer}."
_FOLDER = {
    "embedding": "backbone.embeddings.weight",
    "final_norm": "backbone.norm_f.weight",
    "head": "lm_head",
    "norm": _PREFIX + "norm.weight",
    "in": _PREFIX + "mixer.in_proj",
    "convolution": _PREFIX + "mixer.conv1d",
    "selection": _PREFIX + "mixer.x_proj",
    "step": _PREFIX + "mixer.dt_proj",
    "step_bias": _PREFIX + "mixer.dt_bias",
    "decay": _PREFIX + "mixer.A_log",
    "skip": _PREFIX + "mixer.D",
    "group_norm": _PREFIX + "mixer.norm.weight",
    "out": _PREFIX + "mixer.out_proj",
}
_GGUF = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output",
    "norm": "blk.{layer}.attn_norm.weight",
    "in": "blk.{layer}.ssm_in",
    "convolution": "blk.{layer}.ssm_conv1d",
    "selection": "blk.{layer}.ssm_x",
    "step": "blk.{layer}.ssm_dt",
    "step_bias": "blk.{layer}.ssm_dt.bias",
    "decay": "blk.{layer}.ssm_a",
    "skip": "blk.{layer}.ssm_d",
    "group_norm": "blk.{layer}.ssm_norm.weight",
    "out": "blk.{layer}.ssm_out",
}


class StateSpaceWeights:
    """Reads the weights of a model as it is built."""

    def __init__(self, checkpoint: Checkpoint, *, is_gguf: bool) -> None:
        self._checkpoint, self._is_gguf = checkpoint, is_gguf
        self._names: Mapping[str, str] = _GGUF if is_gguf else _FOLDER

    @property
    def has_head(self) -> bool:
        """True if there is a weight of the head's own."""
        return self._checkpoint.has(f"{self._names['head']}.weight")

    def ignore_head(self) -> None:
        """The head is the embedding."""
        self._checkpoint.ignore([f"{self._names['head']}.weight"])

    def table(self, rows: int, depth: int) -> Matrix:
        """The embedding."""
        return self._checkpoint.matrix(self._names["embedding"], rows, depth)

    def linear(self, role: str, layer: int, rows: int, depth: int) -> Linear:
        """A product, with its bias where it has one."""
        name = self._name(role, layer)
        weight = self._checkpoint.matrix(f"{name}.weight", rows, depth)
        return Linear(weight, self._bias(name, rows))

    def array(self, role: str, layer: int, shape: tuple[int, ...]) -> Array:
        """Numbers as float32, which a file may store with axes of 1, or with one axis as two."""
        return self._shaped(self._name(role, layer), shape)

    def convolution(self, layer: int, channels: int, taps: int) -> tuple[Array, Array]:
        """Weights (taps, channels) and biases."""
        name = self._name("convolution", layer)
        weight = self._shaped(f"{name}.weight", (channels, taps))
        bias = self._bias(name, channels)
        return np.ascontiguousarray(weight.T), np.zeros(channels, np.float32) if bias is None else bias

    def decay(self, layer: int, shape: tuple[int, ...]) -> Array:
        """The rates of the states, which are negative: folders store the logarithms of their amounts."""
        stored = self.array("decay", layer, shape)
        return stored if self._is_gguf else -np.exp(stored)

    def _name(self, role: str, layer: int) -> str:
        return self._names[role].replace("{layer}", str(layer))

    def _bias(self, name: str, size: int) -> Array | None:
        return self._checkpoint.vector(f"{name}.bias", size) if self._checkpoint.has(f"{name}.bias") else None

    def _shaped(self, name: str, shape: tuple[int, ...]) -> Array:
        found = self._checkpoint.shape(name)
        if math.prod(found) != math.prod(shape) or max(map(len, (found, shape))) > len(shape) + 1:
            raise InvalidModelError(f"{self._checkpoint.origin}: tensor {name!r} has shape {found}, expected {shape}")
        return self._checkpoint.array(name, found).reshape(shape)
