"""LoRA adapters in peft's format, w + scale * b @ a: merged into a model's weights, or kept separately.

The layout is that of https://huggingface.co/docs/peft/developer_guides/checkpoint; the formulas are those of LoRA
(Hu et al., 2021), of rsLoRA (Kalajdzievski, 2023) and of DoRA (Liu et al., 2024).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder, read_json
from compiler.frontends.llm.settings import Settings
from compiler.frontends.llm.weights import FLOAT_KINDS, Array, LowRank, Matrix, Reader, new_name

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
_MAGNITUDE = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
# Settings that change the meaning of the weights, with descriptions for error messages.
_REFUSED = {
    "layer_replication": "repeated layers",
    "trainable_token_indices": "individually trained tokens",
    "target_parameters": "adapters of parameters outside of layers",
    "lora_bias": "biases of the second matrix",
    "alora_invocation_tokens": "adapters activated within a text (aLoRA)",
    "use_qalora": "QALoRA",
    "arrow_config": "routed adapters (Arrow)",
}
# These initializations modify the base weights at the start of training.
_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Adapter:
    """A LoRA adapter: the update of each weight, by weight name."""

    def __init__(self, folder: Path) -> None:
        """Open a folder saved by peft.

        Raises:
            StorageError: a file is missing or cannot be read.
            InvalidModelError: a file is damaged, or a tensor lacks its counterpart.
            OptionError: it is not a LoRA adapter, or has unsupported settings.
        """
        self.origin = str(folder)
        self._settings = Settings(read_json(folder / _CONFIG), folder / _CONFIG, {})
        self._check_settings()
        self._tensors = SafetensorsFolder(folder, _WEIGHTS)
        # Names without the prefix and peft's name of the adapted layer -> names in the file.
        self._stored = {name.removeprefix(_PREFIX).replace(".base_layer.", "."): name for name in self._tensors.names}
        self.targets: set[str] = set()
        self.replaced: set[str] = set()
        for name, stored in self._stored.items():
            end = next(
                (each for each in (_A, _B, _EMBEDDING_A, _EMBEDDING_B, *_MAGNITUDE) if name.endswith(each)), None
            )
            if end is not None:
                self.targets.add(name.removesuffix(end))
            elif name.endswith((".weight", ".bias")):
                self.replaced.add(name)
            else:
                raise OptionError(f"{self.origin}: tensor {stored!r} is not part of a LoRA adapter")

    def _check_settings(self) -> None:
        settings = self._settings
        kind = settings.get("peft_type")
        if kind != "LORA":
            raise OptionError(f"{settings.path}: adapters of type {str(kind)[:80]!r} are not supported", "LORA is")
        for key, what in _REFUSED.items():
            if settings.get(key):
                raise OptionError(f"{settings.path}: {what} are not supported ({key!r})")
        start = settings.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGING):
            raise OptionError(
                f"{settings.path}: adapters whose base was changed ('init_lora_weights' is {start[:80]!r}) are not"
                " supported",
                "save it with path_initial_model_for_weight_conversion, which converts it to a LoRA adapter",
            )

    def changed(self, name: str, weight: Array) -> Array:
        """Return a weight with the adapter's change, float32 (rows, depth).

        Args:
            name: name of the weight tensor.
            weight: float32, as stored in the base.

        Raises InvalidModelError if the adapter lacks a tensor, or one has the wrong shape.
        """
        module = name.removesuffix(".weight")
        merged: Array = weight + self._change(module, weight.shape)
        magnitude = next((module + end for end in _MAGNITUDE if module + end in self._stored), None)
        if magnitude is None:
            return merged
        transposed = self._settings.flag("fan_in_fan_out") or module + _EMBEDDING_A in self._stored
        # The norm over all weights of one output.
        norms = np.linalg.norm(merged, axis=0 if transposed else 1)
        stored = self._tensor(magnitude, (norms.size,)) / norms
        result: Array = merged * (stored[None] if transposed else stored[:, None])
        return result

    def check_separate(self) -> None:
        """Raise OptionError if it changes anything other than adding a low-rank product to a weight's matmul."""
        weight = next(iter(sorted(self.replaced)), None)
        extra = next((name for name in self._stored if name.endswith((*_MAGNITUDE, _EMBEDDING_A))), None)
        if weight or extra:
            raise OptionError(
                f"{self.origin} changes {weight or extra!r}, which cannot be kept separate from the base: only pairs of"
                " matrices can (no DoRA, embeddings, biases or modules_to_save)",
                "merge it at compilation: adapters=[folder], --adapter DIR",
            )

    def pair(self, module: str, rows: int, depth: int) -> tuple[Array, Array] | None:
        """Return a (rank, depth) and scale * b (rows, rank) of a weight; None if it is unchanged."""
        if module not in self.targets:
            return None
        a, b = self._pair(module, _A, _B, depth, rows)
        return a, self._scale(module, len(a)) * b

    def replacement(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """Return the tensor that replaces another one (modules_to_save, biases); None if there is none."""
        return self._tensor(name, shape) if name in self.replaced else None

    def _change(self, module: str, shape: tuple[int, ...]) -> Array:
        """Return scale * b @ a in the shape of the weight."""
        rows, columns = shape
        if module + _EMBEDDING_A in self._stored:
            a, b = self._pair(module, _EMBEDDING_A, _EMBEDDING_B, rows, columns)
            return (self._scale(module, len(a)) * (b @ a)).T
        if self._settings.flag("fan_in_fan_out"):
            a, b = self._pair(module, _A, _B, rows, columns)
            return (self._scale(module, len(a)) * (b @ a)).T
        a, b = self._pair(module, _A, _B, columns, rows)
        return self._scale(module, len(a)) * (b @ a)

    def _pair(self, module: str, first: str, second: str, depth: int, rows: int) -> tuple[Array, Array]:
        """Return a (rank, depth) and b (rows, rank)."""
        for end in (first, second):
            if module + end not in self._stored:
                raise InvalidModelError(f"{self.origin} lacks the tensor {_PREFIX + module + end!r}")
        rank = self._tensors.shape(self._stored[module + first])[0]
        return self._tensor(module + first, (rank, depth)), self._tensor(module + second, (rows, rank))

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Array:
        tensor = self._tensors.vector(self._stored[name])
        if tensor.shape != shape:
            raise InvalidModelError(
                f"{self.origin}: tensor {self._stored[name]!r} has shape {tensor.shape}, expected {shape}",
                "the adapter belongs to another model",
            )
        return tensor

    def _scale(self, module: str, rank: int) -> np.float32:
        """Return alpha / rank, considering per-module settings."""
        settings = self._settings
        expected = self._of_module("rank_pattern", module, settings.number("r"))
        if expected != rank:
            raise InvalidModelError(f"{self.origin}: {module!r} has rank {rank}, and {_CONFIG} says {expected:g}")
        alpha = self._of_module("alpha_pattern", module, settings.number("lora_alpha", 8))
        return np.float32(alpha / (math.sqrt(rank) if settings.flag("use_rslora") else rank))

    def _of_module(self, key: str, module: str, default: float) -> float:
        """Return a module's number: that of the first pattern equal to its name or to a suffix of it after a dot."""
        table: Mapping[str, object] = self._settings.table(key)
        for pattern in table:
            if _ends_with(module, pattern, self._settings.path):
                return Settings(table, self._settings.path, {}).number(pattern)
        return default


def _ends_with(module: str, pattern: str, path: Path) -> bool:
    """True if a name ends with a pattern: a name suffix, or "^" and a full name, with "\\." for a dot."""
    plain = pattern.removeprefix("^").replace(r"\.", ".")
    if not re.fullmatch(r"[\w.]+", plain):
        raise OptionError(f"{path}: patterns of modules other than names are not supported ({pattern[:80]!r})")
    return module == plain or (not pattern.startswith("^") and module.endswith(f".{plain}"))


def _check_belongs(adapter: Adapter, base: Reader) -> None:
    """Raise InvalidModelError if an adapter changes a weight that the base lacks."""
    for name in [*(f"{target}.weight" for target in adapter.targets), *adapter.replaced]:
        if name not in base.names:
            raise InvalidModelError(
                f"{adapter.origin} changes {name!r}, which the model does not have",
                "the adapter belongs to another model",
            )


class KeptAdapters:
    """Adapters kept separate from the base's weights; each run chooses one of them, or none (number 0)."""

    def __init__(self, base: Reader, adapters: Sequence[Adapter], renames: Mapping[str, str]) -> None:
        """Check that the adapters belong to the base.

        Args:
            base: reader of the base model's folder.
            adapters: numbered from 1.
            renames: see `compiler.frontends.llm.weights.renamed`.

        Raises:
            InvalidModelError: an adapter changes a weight that the base lacks.
            OptionError: it has changes that cannot be kept separate.
        """
        self._adapters = adapters
        for adapter in adapters:
            _check_belongs(adapter, base)
            adapter.check_separate()
        self._modules = {new_name(name, renames): name for adapter in adapters for name in adapter.targets}

    @property
    def count(self) -> int:
        """Number of adapters."""
        return len(self._adapters)

    def changes(self, module: str, rows: int, depth: int) -> tuple[LowRank, ...]:
        """Return the changes of a weight, by its name without ".weight"; empty if no adapter changes it."""
        if module not in self._modules:
            return ()
        pairs = [adapter.pair(self._modules[module], rows, depth) for adapter in self._adapters]
        present = [pair for pair in pairs if pair is not None]
        rank = max(len(a) for a, _ in present)
        inner = np.zeros((len(present), rank, depth), np.float32)
        outer = np.zeros((len(present), rows, rank), np.float32)
        for slot, (a, b) in enumerate(present):
            inner[slot, : len(a)], outer[slot, :, : len(a)] = a, b
        there = np.array([False, *(pair is not None for pair in pairs)])
        return (LowRank(inner, outer, np.where(there, np.cumsum(there) - 1, -1), module),)

    def check_applied(self, modules: Collection[str]) -> None:
        """Raise OptionError if adapters change a weight whose matmul does not support them."""
        rest = sorted(set(self._modules).difference(modules))
        if rest:
            raise OptionError(
                f"adapters that change {rest[0]!r} cannot be kept separate from the base: only those of the products of"
                " attention, of recurrent mixers, of MLPs and of an untied head can",
                "merge it at compilation: adapters=[folder], --adapter DIR",
            )


class AdaptedReader:
    """A `Reader` of base weights with adapters merged into them, one after another."""

    def __init__(self, base: Reader, adapters: Sequence[Adapter], *, rounds: bool) -> None:
        """Check that the adapters belong to the base.

        Args:
            base: reader of the base model's folder; with peft's tensor names.
            adapters: in order.
            rounds: quantized weights may become float32, because they are quantized again.

        Raises:
            InvalidModelError: an adapter changes a weight that the base lacks.
            OptionError: it changes quantized weights that are not quantized again.
        """
        self._base, self._adapters, self._rounds = base, adapters, rounds
        for adapter in adapters:
            _check_belongs(adapter, base)

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return self._base.names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, slowest axis first."""
        return self._base.shape(name)

    def matrix(self, name: str) -> Matrix:
        """Return a 2-D tensor, or one with more axes, whose leading axes are flattened to rows; of the base's type."""
        if not self._changes(name):
            return self._base.matrix(name)
        base = self._base.matrix(name)
        if base.kind not in FLOAT_KINDS and not self._rounds:
            raise OptionError(
                f"{self._adapters[0].origin} changes {name!r}, whose weights are quantized ({base.kind})",
                "give a precision, in which the changed weights are stored, or the model before it was quantized",
            )
        values = self.vector(name)
        kind, dtype = (base.kind, base.data.dtype) if base.kind in FLOAT_KINDS else ("F32", np.dtype(np.float32))
        return Matrix(kind, values.reshape(base.rows, base.depth).astype(dtype), base.depth)

    def vector(self, name: str) -> Array:
        """Return any tensor as float32."""
        values = self._base.vector(name)
        for adapter in self._adapters:
            replaced = adapter.replacement(name, values.shape)
            values = values if replaced is None else replaced
            if name.removesuffix(".weight") in adapter.targets and name.endswith(".weight"):
                values = adapter.changed(name, values)
        return values

    def _changes(self, name: str) -> bool:
        module = name.removesuffix(".weight")
        return any(module in each.targets or name in each.replaced for each in self._adapters)
