"""float16, bfloat16: weights rounded to 16 bits and stored so; data and sums are float32."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from compiler.compression.quantization.affine import Array
from compiler.compression.quantization.edit import Emit, with_operands
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.schemes.registry import SchemeOptions, scheme
from compiler.passes.rewriting.graph import Call, Expr
from compiler.passes.rewriting.matching import as_constant

_TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class NarrowLayer:
    """A layer whose weights are float32 numbers that fewer bits hold exactly: the module stores them so."""

    weight: Array

    def dequantized(self) -> Array:
        return self.weight

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        return with_operands(call, {layer.product.weight: as_constant(self.weight)})


@dataclass(frozen=True)
class NarrowFloats:
    """Rounds to a type."""

    dtype: np.dtype

    def needs_gram(self, layer: Layer) -> bool:
        return False

    def refuses(self, layer: Layer) -> str | None:
        with np.errstate(over="ignore"):
            whole = np.isfinite(layer.weight.astype(self.dtype).astype(np.float32)).all()
        return None if whole else f"its weights are larger than {self.dtype.name} holds"

    def rounded(self, layer: Layer, gram: Array | None) -> NarrowLayer:
        return NarrowLayer(layer.weight.astype(self.dtype).astype(np.float32))


@scheme("float16", "bfloat16")
def narrow_floats(name: str, options: SchemeOptions) -> NarrowFloats:
    """No options."""
    return NarrowFloats(_TYPES[name])
