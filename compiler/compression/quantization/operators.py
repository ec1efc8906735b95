"""Classification of operators for the quantizer.

A product multiplies activations by constant weights and sums: it computes in integers. A mover reads several tensors,
or every element more than once, so its operands lie in memory and are worth holding as integers. What is elementwise is
part of the kernel before it and needs nothing. A look-up reads rows of a constant table: integers are less to store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from compiler.passes.rewriting.graph import Call, operator_name
from compiler.passes.rewriting.matching import dtype_of, rank_of, shape_of
from compiler.passes.rewriting.operator_properties import BINARY, UNARY
from compiler.passes.rewriting.transposed_convolutions import Interleaved

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr


@dataclass(frozen=True)
class Product:
    """Operand indices, which axis of the weights (and of the result) counts the filters, and whether the weights are a
    matrix."""

    data: int
    weight: int
    filters: int
    channels: int
    is_matrix: bool = False


LOOK_UP = Product(data=1, weight=0, filters=0, channels=-1)
_CONSTANT = "both operands are constants"
_TABLE_ELEMENTS = 1024  # smaller tables are not worth one scale per row

# A Product; the reason why integers cannot compute it; or None if the call is not a product.
Describe = Callable[[Call], Product | str | None]
_PRODUCTS: dict[str, Describe] = {}


def product_operator(*names: str) -> Callable[[Describe], Describe]:
    """Register the decorated function for calls of the operators `names`."""

    def register(describe: Describe) -> Describe:
        for name in names:
            _PRODUCTS[name] = describe
        return describe

    return register


def product_of(call: Call, operators: Collection[str] = ()) -> Product | str | None:
    """Classify a call: a product, a product that stays in float and why, or neither.

    Args:
        operators: what the target's accelerator computes in integers, by name.
    """
    name = operator_name(call) or ""
    describe = _PRODUCTS.get(name)
    if describe is _transposed_convolution and operators and name not in operators:
        return "no integer kernel for transposed convolutions"
    return None if describe is None else describe(call)


def integer_name(call: Call) -> str:
    """The name that a target knows an operator by, or a kernel."""
    name = operator_name(call) or ""
    return f"kernel.{call.args[0].name_hint.rstrip('0123456789')}" if name == "relax.call_tir" else name


@product_operator(*(f"relax.nn.conv{rank}d" for rank in (1, 2, 3)))
def _convolution(call: Call) -> Product | str | None:
    if not isinstance(call.args[1], GenericConst):
        return "its weights are computed"
    if isinstance(call.args[0], GenericConst):
        return _CONSTANT
    if dtype_of(call) != "float32":
        return f"it computes in {dtype_of(call)}"
    data, kernel = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if not data.startswith("NC") or not kernel.startswith("OI"):
        return f"no integer kernel for the layouts {data} and {kernel}"
    return Product(0, 1, 0, 1)


@product_operator(*(f"relax.nn.conv{rank}d_transpose" for rank in (1, 2, 3)))
def _transposed_convolution(call: Call) -> Product | str | None:
    if not isinstance(call.args[1], GenericConst):
        return "its weights are computed"
    if isinstance(call.args[0], GenericConst):
        return _CONSTANT
    if int(call.attrs.groups) != 1 or dtype_of(call) != "float32":
        return "a transposed convolution in groups, or not of float32"
    if Interleaved.of(call) is None:
        return "no integer kernel for transposed convolutions that are dilated or of dynamic size"
    return Product(0, 1, 1, 1)


@product_operator("relax.matmul")
def _matmul(call: Call) -> Product | str | None:
    left, right = call.args[:2]
    if isinstance(left, GenericConst) and isinstance(right, GenericConst):
        return _CONSTANT
    if isinstance(left, GenericConst):
        return "its left operand is the constant one"
    if not isinstance(right, GenericConst):
        return "both operands are activations"
    if dtype_of(call) != "float32":
        return f"it computes in {dtype_of(call)}"
    if rank_of(right) != 2 or (rank_of(left) or 0) < 2:
        return "no integer kernel for weights that are not a matrix, or for a vector"
    return Product(0, 1, 1, int(call.ty.ndim) - 1, is_matrix=True)


def is_look_up(call: Call) -> bool:
    """True if the call takes rows of a large constant matrix of float32."""
    if operator_name(call) != "relax.take" or not isinstance(call.args[0], GenericConst):
        return False
    table, index = call.args[:2]
    large = rank_of(table) == 2 and int(np.prod(shape_of(table) or ())) >= _TABLE_ELEMENTS
    return large and dtype_of(table) == "float32" and call.attrs.axis == 0 and isinstance(index, relax.Var)


MOVES = frozenset(
    f"relax.{name}"
    for name in ("reshape", "permute_dims", "squeeze", "expand_dims", "flatten", "strided_slice", "split", "nn.pad")
)
MAXIMA = frozenset(f"relax.nn.max_pool{rank}d" for rank in (1, 2, 3))
_AVERAGES = frozenset(("relax.mean", *(f"relax.nn.avg_pool{rank}d" for rank in (1, 2, 3))))
_JOINS = frozenset(("relax.concat",))
ELEMENTWISE = frozenset(f"relax.{name}" for name in ("add", "subtract", "multiply", "maximum", "minimum"))
MOVERS = MAXIMA | _AVERAGES | _JOINS


def is_transparent(call: Call) -> bool:
    """True if the call is elementwise or a move of elements."""
    name = operator_name(call)
    if name == "relax.call_tir":
        return "clip" in call.args[0].name_hint  # a limit that keeps NaN, as ONNX has it
    return name in MOVES or name in UNARY or name in BINARY


def activations_of(call: Call) -> list[tuple[int, Expr]]:
    """(argument index, variable) of the float tensors a call reads; of a tuple operand, each with its index."""
    found = []
    for index, argument in enumerate(call.args):
        fields = list(argument.fields) if isinstance(argument, relax.Tuple) else [argument]
        found += [(index, each) for each in fields if isinstance(each, relax.Var) and "float" in dtype_of(each)]
    return found


def label_of(call: Call, number: int) -> str:
    """A name for reports: the operator, its number in the graph and its sizes."""
    name = (operator_name(call) or "call").rsplit(".", 1)[-1]
    weight = 0 if name == "take" else 1
    shape = shape_of(call.args[weight]) if len(call.args) > weight else None
    sizes = "x".join(map(str, shape)) if shape else ""
    return f"{name}_{number} {sizes}".strip()
