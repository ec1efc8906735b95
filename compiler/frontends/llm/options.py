"""Options for compiling language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compiler.errors import OptionError
from compiler.frontends.llm.weights import Array
from compiler.support.precision import type_name

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")
ACTIVATIONS = ("int8", "float32")
CACHES = ("float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class LanguageModelOptions:
    """Options of a language model's compilation.

    Attributes:
        precision: storage type of weights: one of `PRECISIONS`, or None to keep the checkpoint's. "int8" and "int4"
            quantize groups of 32 neighbors with one scale each; the embedding and the head get 8 bits.
        activations: "int8" quantizes the operands of matmuls with quantized weights to 8 bits, with one scale per 32
            neighbors, like llama.cpp, and rounds those of matmuls with bfloat16 weights to bfloat16; "float32" keeps
            them.
        all_logits: return the logits of all tokens instead of only the last one.
        cache: the type of cached keys and values: one of `CACHES`, or None for float32 with float32 weights and float16
            with narrower ones. Each token reads the whole cache. "int8" has a scale per head and row.
        sequences: build the module for several sequences per run, for `compiler.generation.Scheduler` and speculative
            decoding: a session's cache has a slot for each. Excludes `all_logits` and int8 caches.
        adapters: folders of peft LoRA adapters to merge into the weights, one after another.
        kept_adapters: name -> folder of adapters kept separate from the weights; each run chooses one, or none.
        images: compile the encoder of images, too, of models whose text part would otherwise be compiled alone.
        captures: also return the operand of each matmul of the layers, for `grams`.
        grams: Gram matrix of each of these operands (the sum of x xᵀ over its rows x), used by "int4" (GPTQ).
    """

    precision: str | None = None
    activations: str = "int8"
    all_logits: bool = False
    cache: str | None = None
    sequences: bool = False
    adapters: tuple[Path, ...] = ()
    kept_adapters: Mapping[str, Path] = field(default_factory=dict)
    images: bool = False
    captures: bool = False
    grams: tuple[Array, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.precision is not None:
            name = type_name(self.precision)
            if name not in PRECISIONS:
                raise OptionError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
            object.__setattr__(self, "precision", name)
        if self.activations not in ACTIVATIONS:
            raise OptionError(f"activations {self.activations!r} are not one of {', '.join(ACTIVATIONS)}")
        if self.sequences and self.all_logits:
            raise OptionError(
                "all_logits does not apply to modules for several sequences, whose inputs select the logits"
            )
        if self.cache is not None:
            name = type_name(self.cache)
            if name not in CACHES:
                raise OptionError(f"cache {self.cache!r} is not one of {', '.join(CACHES)}")
            object.__setattr__(self, "cache", name)

    def cache_dtype(self, *, narrow: bool) -> str:
        """Return the type of the cache; `narrow`: True if the checkpoint's own weights are narrower than float32."""
        if self.cache is not None:
            return self.cache
        return "float32" if self.precision == "float32" or not (self.precision or narrow) else "float16"

    def rounds_attention(self, cache: str, *, stored: str) -> bool:
        """True if attention may round its operands like matmuls with such weights: to bfloat16 in prompts, and queries
        to 8 bits over an int8 cache. `stored`: the kind of the checkpoint's weights, as in `Matrix.kind`."""
        exact = ("F32", "F16") if self.precision is None else ("float32", "float16")
        narrow = (stored if self.precision is None else self.precision) not in exact
        return self.activations == "int8" and (narrow or cache in ("int8", "bfloat16"))
