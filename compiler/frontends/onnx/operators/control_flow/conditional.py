"""If: the branch is chosen during import if the condition is known, otherwise at run time."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import tvm_ffi
from tvm import relax
from tvm.relax import op as R

from compiler.errors import InvalidModelError
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.control_flow.structures import (
    Lifted,
    Structure,
    lift,
    materialized,
    rebuild,
    require_known,
    same_structure,
    sources_with_captures,
    structure_of,
    tensors_in,
)
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim
from compiler.frontends.onnx.values import Runtime, Symbolic, Value, tensor_shape


@converter("If")
def convert_if(context: NodeContext) -> list[Value]:
    """Import one branch in place if the condition is known, otherwise both as functions; differing sizes are
    unknown."""
    then_graph: onnx.GraphProto = context.required_attribute("then_branch")
    else_graph: onnx.GraphProto = context.required_attribute("else_branch")
    condition = _known_condition(context)
    if condition is not None:
        return context.import_subgraph(then_graph if condition else else_graph, [])
    return _choose_at_run_time(context, then_graph, else_graph)


def _known_condition(context: NodeContext) -> bool | None:
    value = context.tensor(0)
    if isinstance(value, Symbolic):
        (element,) = value.array.reshape(-1)
        if context.arithmetic.proved(element):
            return True
        return False if context.arithmetic.proved(context.arithmetic.logical_not(element)) else None
    known = context.known(0)
    if known is None:
        return None
    if known.size != 1:
        context.invalid(f"its condition must have one element, not {known.shape}")
    return bool(known.reshape(-1)[0])


def _branch(
    context: NodeContext, graph: onnx.GraphProto, name: str, *, as_declared: bool = False
) -> _Branch | InvalidModelError:
    """Return the branch, or the reason why it cannot run on its input shapes."""
    try:
        return _Branch(context, graph, name, as_declared=as_declared)
    except InvalidModelError as error:
        return error


def _only_branch(
    context: NodeContext,
    condition: relax.Expr,
    then_graph: onnx.GraphProto,
    else_graph: onnx.GraphProto,
    branches: Sequence[_Branch | InvalidModelError],
) -> list[Value]:
    """Import the branch that fits the shapes in place, with a run-time check that the condition selects it.

    One model may support several input shapes, each with its own branch.
    """
    errors = [branch for branch in branches if isinstance(branch, InvalidModelError)]
    if len(errors) == 2:
        raise errors[0]
    takes_then = not isinstance(branches[0], InvalidModelError)
    return _assumed_branch(context, condition, takes_then, then_graph if takes_then else else_graph)


def _assumed_branch(
    context: NodeContext, condition: relax.Expr, takes_then: bool, graph: onnx.GraphProto
) -> list[Value]:
    """Import one branch in place, with a run-time check that the condition selects it."""
    number = context.reshape(context.emit(R.astype(condition, "int64")), (1,))
    shape = context.block_builder.emit(R.tensor_to_shape(number))
    name = context.importer.builder.checks.next_name(
        f"its condition is {str(not takes_then).lower()}, but only the other branch could be compiled"
    )
    context.block_builder.match_cast(shape, relax.ShapeType([int(takes_then)]), name)
    return context.import_subgraph(graph, [])


def _squeezes(graph: onnx.GraphProto, other: onnx.GraphProto) -> bool:
    """True if a branch drops an axis that the other keeps, as in the export of `squeeze(axis)` for a dynamic size."""
    nodes = [node.op_type for node in graph.node if node.op_type != "Constant"]
    return nodes == ["Squeeze"] and [node.op_type for node in other.node] == ["Identity"]


def scalar_condition(context: NodeContext, expr: relax.Expr) -> relax.Expr:
    """Return a one-element condition without dimensions, as TVM's If requires."""
    shape = tensor_shape(expr)
    if any(isinstance(d, int) and d != 1 for d in shape):
        context.invalid(f"its condition must have one element, not {shape}")
    return expr if not shape else context.reshape(expr, ())


class _Branch:
    """A branch as a private function, with the structure and shapes of its outputs."""

    def __init__(self, context: NodeContext, graph: onnx.GraphProto, name: str, *, as_declared: bool) -> None:
        self.values: list[Value] = []
        self.structures: list[Structure] = []
        self.shapes: list[tuple[Dim, ...]] = []

        def results(_: object) -> list[relax.Expr]:
            self.values = context.import_subgraph(graph, [])
            self.structures = [structure_of(value) for value in self.values]
            exprs = [materialized(context, tensor) for value in self.values for tensor in tensors_in(value)]
            if as_declared and len(exprs) == len(graph.output):
                exprs = [_as_declared(context, *each) for each in zip(exprs, graph.output, strict=True)]
            self.shapes = [tensor_shape(expr) for expr in exprs]
            return exprs

        self.function: Lifted = lift(context, name, list, results)


def _as_declared(context: NodeContext, expr: relax.Expr, output: onnx.ValueInfoProto) -> relax.Expr:
    """Return a tensor of one element with as many axes as its output declares."""
    declared = output.type.tensor_type
    if not declared.HasField("shape") or any(size != 1 for size in tensor_shape(expr)):
        return expr
    rank = len(declared.shape.dim)
    return expr if rank == len(tensor_shape(expr)) else context.reshape(expr, (1,) * rank)


def _choose_at_run_time(context: NodeContext, then_graph: onnx.GraphProto, else_graph: onnx.GraphProto) -> list[Value]:
    condition = scalar_condition(context, context.input(0))
    first, second = _branch(context, then_graph, "then_branch"), _branch(context, else_graph, "else_branch")
    if isinstance(first, InvalidModelError) or isinstance(second, InvalidModelError):
        return _only_branch(context, condition, then_graph, else_graph, [first, second])
    _check_structures(context, first, second)
    if [len(shape) for shape in first.shapes] != [len(shape) for shape in second.shapes]:
        # The code after it was exported for the squeezed form; the other rank would fail there.
        if _squeezes(then_graph, else_graph):
            return _assumed_branch(context, condition, True, then_graph)
        if _squeezes(else_graph, then_graph):
            return _assumed_branch(context, condition, False, else_graph)
        # PaddlePaddle's assignments give (1,) where both branches declare ().
        first = _Branch(context, then_graph, "then_branch", as_declared=True)
        second = _Branch(context, else_graph, "else_branch", as_declared=True)
    shapes = [joined_shape(context, a, b) for a, b in zip(first.shapes, second.shapes, strict=True)]
    results = choose(context, condition, first.function.call([]), second.function.call([]), shapes)
    sources = sources_with_captures(context)
    dtypes = [tensor.dtype for value in first.values for tensor in tensors_in(value)]
    tensors = iter([Runtime(result, dtype, sources) for result, dtype in zip(results, dtypes, strict=True)])
    return [rebuild(structure, tensors) for structure in first.structures]


def choose(
    context: NodeContext,
    condition: relax.Expr,
    when_true: relax.Expr,
    when_false: relax.Expr,
    shapes: Sequence[Sequence[Dim]],
) -> list[relax.Expr]:
    """Return the fields of one of two tuples; `shapes` are shapes that both agree with."""
    block_builder = context.block_builder
    chosen = block_builder.emit(relax.If(condition, when_true, when_false))
    return fields(context, chosen, shapes)


def fields(context: NodeContext, chosen: relax.Expr, shapes: Sequence[Sequence[Dim]]) -> list[relax.Expr]:
    """Return the tensors in a tuple with those shapes, checked at run time if the types do not imply them."""
    result: list[relax.Expr] = []
    for index, shape in enumerate(shapes):
        field = context.block_builder.emit(relax.TupleGetItem(chosen, index))
        wanted = relax.TensorType(list(shape), field.ty.dtype)
        result.append(field if tvm_ffi.structural_equal(field.ty, wanted) else context.match_shape(field, shape))
    return result


def joined_shape(context: NodeContext, left: Sequence[Dim], right: Sequence[Dim]) -> list[Dim]:
    """Return a shape that fits both: equal sizes that are known here, otherwise fresh ones."""
    if len(left) != len(right):
        context.refuse(f"an output has {len(left)} dimensions in one branch and {len(right)} in the other")
    builder = context.importer.builder
    return [
        a if context.arithmetic.equal_is_proved(a, b) and builder.size_is_visible(a) else context.dimension()
        for a, b in zip(left, right, strict=True)
    ]


def _check_structures(context: NodeContext, then_branch: _Branch, else_branch: _Branch) -> None:
    if len(then_branch.structures) != len(else_branch.structures):
        context.invalid("its branches have different numbers of outputs")
    for index, (a, b) in enumerate(zip(then_branch.structures, else_branch.structures, strict=True)):
        if not same_structure(a, b):
            require_known(context, [0])
            context.refuse(
                f"its condition is known only when running, and output {index} is {a.describe()} in one branch and "
                f"{b.describe()} in the other"
            )
