"""The context that converters see of the node being converted."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
import onnx
import onnx.helper
import tvm
from numpy.typing import NDArray
from tvm import relax

from compiler.errors import InputValueRequiredError, InvalidModelError, Refusal
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.builder import LARGEST_ELEMENT
from compiler.frontends.onnx.evaluation.reference import fold
from compiler.frontends.onnx.node_names import shown_name
from compiler.frontends.onnx.structure import describe
from compiler.frontends.onnx.symbolic import Arithmetic, Dim
from compiler.frontends.onnx.values import (
    Constant,
    OptionalValue,
    Runtime,
    SequenceValue,
    StackedSequence,
    Symbolic,
    Value,
    is_poisoned,
    sources_of,
)

if TYPE_CHECKING:
    from compiler.frontends.onnx.importer import Importer, Scope

T = TypeVar("T")
# Exceeds any tensor's rank: expressions of this many unknown values would be too slow.
_MAX_SIZES = 16


class RefusedError(Exception):
    """A node cannot be converted; collected into one UnsupportedModelError."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class PoisonedInputError(Exception):
    """A node uses the result of a refused one."""


class NodeContext:
    """A node being converted: its inputs and attributes, and the builder for its code."""

    def __init__(
        self, importer: Importer, scope: Scope, node: onnx.NodeProto, inputs: Sequence[Value | None], opset: int
    ) -> None:
        self.importer = importer
        self.scope = scope
        self.node = node
        self.inputs = list(inputs)
        self.opset = opset
        self._attributes = {a.name: a for a in node.attribute}
        self._materialized: dict[int, relax.Expr] = {}

    @property
    def operator(self) -> str:
        return self.node.op_type

    @property
    def name(self) -> str:
        """The node's name in messages."""
        return shown_name(self.node)

    @property
    def arithmetic(self) -> Arithmetic:
        """Arithmetic on sizes."""
        return self.importer.builder.arithmetic

    @property
    def block_builder(self) -> relax.BlockBuilder:
        return self.importer.builder.block_builder

    # Inputs

    def has_input(self, index: int) -> bool:
        """True if the optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """Return input `index` unchanged; refuses if it is missing."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise InvalidModelError(f"{describe(self.node)} lacks its input {index}")
        if is_poisoned(value):
            raise PoisonedInputError
        return value

    def tensor(self, index: int) -> Constant | Symbolic | Runtime:
        """Return input `index`, which must be a tensor (a filled optional counts as its content)."""
        value = self.value(index)
        while isinstance(value, OptionalValue) and value.value is not None:
            value = value.value
        if not isinstance(value, (Constant, Symbolic, Runtime)):
            kind = "a sequence" if isinstance(value, SequenceValue | StackedSequence) else "an empty optional"
            raise InvalidModelError(f"{describe(self.node)}: input {index} is {kind}, not a tensor")
        return value

    def input(self, index: int) -> relax.Expr:
        """Return input `index` as a Relax expression."""
        if index not in self._materialized:
            value = self.tensor(index)
            if not dtypes.is_carried(value.dtype):
                self.refuse(f"{value.dtype} tensors are not supported at run time")
            self._materialized[index] = self.importer.builder.materialize(value)
        return self._materialized[index]

    def shape(self, index: int) -> tuple[Dim, ...]:
        """Return the shape of input `index`; each size is an int or an expression."""
        return self.tensor(index).shape

    def rank(self, index: int) -> int:
        return len(self.shape(index))

    def dtype(self, index: int) -> str:
        """Return the element type's name of input `index`."""
        return self.tensor(index).dtype

    def known(self, index: int) -> np.ndarray | None:
        """Return the value of input `index` if known during import, otherwise None."""
        value = self.tensor(index)
        if isinstance(value, Constant):
            return value.array
        if isinstance(value, Runtime) and value.producer is not None:
            return fold(value, self.importer.opsets)
        return None

    def constant(self, index: int) -> np.ndarray:
        """Return the value of input `index`, which must be known during import.

        Raises InputValueRequiredError with the model inputs it depends on; refuses if no input's value would help.
        """
        array = self.known(index)
        if array is not None:
            return array
        value = self.tensor(index)
        reason = f"its input {self.input_label(index)} must be known when compiling"
        if isinstance(value, Symbolic):
            self.require_sizes(list(value.array.reshape(-1)), reason)
        sources = sorted(sources_of(value))
        if not sources:
            self.refuse(f"{reason}, but is computed when running")
        raise InputValueRequiredError(Refusal(self.operator, self.name, reason), sources)

    def require_sizes(self, sizes: Sequence[Dim], reason: str) -> NoReturn:
        """Refuse because sizes are unknown at compile time.

        Raises InputValueRequiredError instead if they are read from input values, which the caller can fix.
        """
        sources = [self.importer.builder.sources_of_size(size) for size in sizes]
        names = sorted(frozenset().union(*(s for s in sources if s is not None)))
        if None in sources or not names:
            self.refuse(f"{reason}, but depends on a dynamic shape; fix it with shapes=")
        raise InputValueRequiredError(Refusal(self.operator, self.name, reason), names)

    def scalar(self, index: int, default: Any = None) -> Any:
        """Return the single element of a known input as a Python number; `default` if the input is missing."""
        if not self.has_input(index):
            return default
        array = self.constant(index)
        if array.size != 1:
            raise InvalidModelError(f"{describe(self.node)}: input {index} must hold one element, not {array.shape}")
        return array.reshape(-1)[0].item()

    def integers(self, index: int) -> list[int]:
        """Return the elements of a known integer input."""
        return [int(v) for v in self.constant(index).reshape(-1)]

    def shape_values(self, index: int, *, signed: bool = False, length: int | None = None) -> list[Dim]:
        """Return the elements of an integer input as sizes: ints, expressions, or sizes read at run time.

        The tensor's length must be known, or is given as required by the operator. Elements read at run time are
        assumed to be non-negative (a negative one counts as 0, or is an error in an input) unless `signed`.
        """
        value = self.tensor(index)
        known = self.known(index)
        if known is not None:
            return [int(v) for v in known.reshape(-1)]
        if isinstance(value, Symbolic):
            return list(value.array.reshape(-1))
        assert isinstance(value, Runtime)
        if len(value.shape) > 1:
            self.invalid(f"input {index} lists sizes, so that it must have one axis, not the shape {value.shape}")
        if all(isinstance(d, int) for d in value.shape) and math.prod(value.shape) > _MAX_SIZES:
            self.constant(index)
        builder = self.importer.builder
        if not signed:
            builder.require_range(self.input(index), 0, LARGEST_ELEMENT)
        key = (signed, builder.current_region)
        for (kind, region), sizes in value.as_shape.items():
            if kind == signed and builder.is_visible(region):
                return list(sizes)
        tensor = self.input(index)
        if not all(isinstance(d, int) for d in value.shape):
            if length is None:
                self.refuse(f"the length of its input {self.input_label(index)} is not known when compiling")
            builder.require(value.shape[0], "equal", length)
            tensor = self.match_shape(tensor, [length])
        value.as_shape[key] = builder.shape_values(tensor, signed)
        return list(value.as_shape[key])

    def input_label(self, index: int) -> str:
        """Return an input's position and name for a message."""
        return f"{index} ({self.node.input[index]!r})"

    def sources(self) -> frozenset[str]:
        """Return the model inputs that the node's inputs depend on."""
        return frozenset().union(*(sources_of(value) for value in self.inputs))

    # Attributes

    def attribute(self, name: str, default: T) -> T:
        """Return an attribute's value, strings decoded, or the default."""
        if name not in self._attributes:
            return default
        value = onnx.helper.get_attribute_value(self._attributes[name])
        if isinstance(value, bytes):
            return value.decode(errors="replace")  # type: ignore[return-value]
        if isinstance(value, (list, tuple)) or type(value).__name__.startswith("Repeated"):
            return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in value]  # type: ignore[return-value]
        return value

    def choice(self, name: str, default: str, known: Collection[str]) -> str:
        """Return a string attribute; InvalidModelError unless it is one of the known values."""
        value = self.attribute(name, default)
        if value not in known:
            self.invalid(f"{name} must be one of {', '.join(known)}, not {value!r}")
        return value

    def has_attribute(self, name: str) -> bool:
        return name in self._attributes

    def required_attribute(self, name: str) -> Any:
        """Return an attribute's value; InvalidModelError if it is missing."""
        if name not in self._attributes:
            raise InvalidModelError(f"{describe(self.node)} lacks the attribute {name!r}")
        return self.attribute(name, None)

    def integer_list(self, name: str) -> NDArray[np.int64]:
        """Return an attribute's list of integers; empty if missing."""
        if name not in self._attributes:
            return np.zeros(0, np.int64)
        values = self._attributes[name].ints
        return np.fromiter(values, np.int64, len(values))

    def choices(self, name: str, known: Sequence[str]) -> NDArray[np.int8]:
        """Return the positions in `known` of an attribute's list of strings; InvalidModelError for unknown strings."""
        positions = {choice.encode(): index for index, choice in enumerate(known)}
        values = self._attributes[name].strings if name in self._attributes else ()
        unknown = next((value for value in values if value not in positions), None)
        if unknown is not None:
            self.invalid(f"{name} has {unknown.decode(errors='replace')!r}, which is none of {', '.join(known)}")
        return np.fromiter((positions[value] for value in values), np.int8, len(values))

    def axis(self, value: int, rank: int) -> int:
        """Return a non-negative axis; InvalidModelError if it is outside [-rank, rank)."""
        if not -rank <= value < rank:
            raise InvalidModelError(f"{describe(self.node)}: axis {value} does not exist in a tensor of rank {rank}")
        return value + rank if value < 0 else value

    def axes(self, values: Sequence[int], rank: int) -> list[int]:
        """Return non-negative axes, which must be distinct."""
        axes = [self.axis(int(v), rank) for v in values]
        if len(set(axes)) != len(axes):
            raise InvalidModelError(f"{describe(self.node)}: an axis is given twice: {list(values)}")
        return axes

    def output_used(self, index: int) -> bool:
        """True if output `index` has a name and a reader."""
        name = self.node.output[index] if index < len(self.node.output) else ""
        return bool(name) and (self.scope.read is None or name in self.scope.read)

    # Code

    def emit(self, expr: relax.Expr) -> relax.Expr:
        """Bind an expression; the result's shape is known."""
        return self.importer.builder.emit(expr)

    def reshape(self, tensor: relax.Expr, shape: Sequence[Dim]) -> relax.Expr:
        """Reshape a tensor to a shape with as many elements, one of whose sizes may be -1; axes may be empty."""
        return self.importer.builder.reshape(tensor, shape)

    def emit_te(self, function: Callable[..., Any], *args: object, **kwargs: object) -> relax.Expr:
        """Bind a call of a tensor expression function (`primfunc_name_hint` names it)."""
        return self.importer.builder.emit_te(function, *args, **kwargs)

    def match_shape(self, tensor: relax.Expr, shape: Sequence[Dim]) -> relax.Expr:
        """Return the tensor with a known shape, checked at run time."""
        return self.importer.builder.match_shape(tensor, shape)

    def with_simple_sizes(self, tensor: relax.Expr) -> relax.Expr:
        """Return the tensor with names for sizes other than sums and products."""
        return self.importer.builder.with_simple_sizes(tensor)

    def dimension(self, name: str = "size") -> tvm.ir.Expr:
        """Return a new symbolic size."""
        return self.importer.builder.dimension(name)

    def literal(self, value: object, dtype: str, shape: tuple[int, ...] = ()) -> tvm.ir.GenericConst:
        """Return a constant of that type."""
        return Constant(np.full(shape, value, dtypes.numpy_dtype(dtype)), dtype).expr()

    def runtime(self, expr: relax.Expr, dtype: str) -> Runtime:
        """Return a value whose logical type differs from the expression's (int4 carried as int8)."""
        return Runtime(self.emit(expr), dtype, self.sources())

    def refuse(self, reason: str) -> NoReturn:
        """Refuse this node; the reason becomes part of the UnsupportedModelError."""
        raise RefusedError(Refusal(self.operator, self.name, reason))

    def invalid(self, reason: str) -> NoReturn:
        """Raise InvalidModelError for this node."""
        raise InvalidModelError(f"{describe(self.node)}: {reason}")

    def import_subgraph(self, graph: onnx.GraphProto, inputs: Sequence[Value | None]) -> list[Value]:
        """Import a subgraph's nodes at this position in the code; it can access the values around the node."""
        return self.importer.import_subgraph(graph, inputs, self.scope)
