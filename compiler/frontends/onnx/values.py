"""Values passed between the nodes of a graph during import.

- `Constant`: a known array.
- `Symbolic`: an array whose elements are known up to symbolic sizes (the result of Shape and arithmetic on it).
- `Runtime`: a tensor that exists at run time.
- `SequenceValue`, `OptionalValue`: resolved at import. `StackedSequence`: a sequence of run-time length.
- `Poisoned`: the result of a refused node; nodes that use it are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import tvm
from tvm import relax

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.symbolic import Dim

NO_SOURCES: frozenset[str] = frozenset()


class Constant:
    """An array known during import.

    The array is loaded on first access; once it is part of the module, the module's copy is the only one.
    """

    def __init__(self, array: np.ndarray, dtype: str | None = None) -> None:
        self._array: np.ndarray | None = np.asarray(array)
        self._load: Callable[[], np.ndarray] | None = None
        self._expr: tvm.ir.GenericConst | None = None
        self.dtype = dtype or ("string" if self._array.dtype == object else self._array.dtype.name)
        self.shape: tuple[int, ...] = self._array.shape

    @classmethod
    def lazy(cls, load: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: str) -> Constant:
        """Return a constant whose array is read by `load` on first access."""
        constant = cls.__new__(cls)
        constant._array, constant._load, constant._expr = None, load, None
        constant.dtype, constant.shape = dtype, shape
        return constant

    @property
    def array(self) -> np.ndarray:
        if self._array is None:
            if self._expr is not None:
                return dtypes.from_carrier(self._expr.value.numpy(), self.dtype)
            assert self._load is not None
            self._array, self._load = self._load(), None
        return self._array

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def expr(self) -> tvm.ir.GenericConst:
        """Return the Relax constant, in the carrier type of this dtype."""
        if self._expr is None:
            carrier = dtypes.carrier(self.dtype)
            array = np.ascontiguousarray(self.array).reshape(self.shape)
            self._expr = relax.const(tvm.runtime.tensor(dtypes.to_carrier(array, self.dtype)), carrier)
            if self.size > 4096:
                self._array = None
        return self._expr


@dataclass(eq=False)
class Symbolic:
    """Elements are Python numbers or scalar expressions; integers are computed as int64 regardless of `dtype`."""

    array: np.ndarray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass(frozen=True, eq=False)
class Producer:
    """The node that computes a foldable value: enough to evaluate it on demand."""

    node: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    output: int
    opset: int


@dataclass(eq=False)
class Runtime:
    """A tensor of the module. `sources` names the model inputs its value depends on.

    `producer` is set if every input of its node is a constant or has a producer: the value can be folded. `as_shape`
    caches its elements as sizes, by (signed, region).
    """

    expr: relax.Expr
    dtype: str
    sources: frozenset[str] = NO_SOURCES
    producer: Producer | None = None
    as_shape: dict[tuple[bool, int], list[Dim]] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[Dim, ...]:
        return tensor_shape(self.expr)


@dataclass(eq=False)
class SequenceValue:
    """A list of values; `dtype` is the element type, if known."""

    values: list[Value]
    dtype: str | None = None


@dataclass(eq=False)
class StackedSequence:
    """A sequence of tensors of one shape along the first axis of a tensor, with a length known only at run time."""

    tensor: TensorValue


@dataclass(eq=False)
class OptionalValue:
    """An optional: a value, or None if empty."""

    value: Value | None


@dataclass(eq=False)
class Poisoned:
    """The output of a refused node."""


TensorValue = Constant | Symbolic | Runtime
Value = TensorValue | SequenceValue | StackedSequence | OptionalValue | Poisoned


def tensor_shape(expr: relax.Expr) -> tuple[Dim, ...]:
    """Return the shape of a tensor expression of known shape, with ints for immediates."""
    return tuple(int(d.value) if isinstance(d, tvm.tirx.IntImm) else d for d in expr.ty.shape.values)


def sources_of(value: Value | None) -> frozenset[str]:
    """Return the model inputs whose values a value depends on."""
    if isinstance(value, Runtime):
        return value.sources
    if isinstance(value, SequenceValue):
        return frozenset().union(*(sources_of(item) for item in value.values))
    if isinstance(value, StackedSequence):
        return sources_of(value.tensor)
    if isinstance(value, OptionalValue):
        return sources_of(value.value)
    return NO_SOURCES


def is_poisoned(value: object) -> bool:
    """True if a value comes from a refused node, directly or inside a sequence."""
    if isinstance(value, SequenceValue):
        return any(is_poisoned(item) for item in value.values)
    if isinstance(value, OptionalValue):
        return is_poisoned(value.value)
    return isinstance(value, Poisoned)
