"""Values passed to and from private functions: sequences and optionals as the tensors in them.

Subgraphs become functions, with captured values as trailing parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import tvm
from tvm import relax

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.builder import Builder
from compiler.frontends.onnx.context import NodeContext, PoisonedInputError
from compiler.frontends.onnx.structure import captured_names, subgraphs
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

Tensor = Constant | Symbolic | Runtime


@dataclass(frozen=True)
class Structure:
    """Kind of a value, with the parts of a sequence or a filled optional."""

    kind: str
    dtype: str | None = None
    parts: tuple[Structure, ...] = ()

    def describe(self) -> str:
        """Return a description for messages."""
        if self.kind == "tensor":
            return f"a {self.dtype} tensor"
        if self.kind == "sequence":
            return f"a sequence of {len(self.parts)}"
        if self.kind == "stack":
            return "a sequence whose length a run decides"
        return "a filled optional" if self.parts else "an empty optional"


def structure_of(value: Value) -> Structure:
    """Return the structure of a value; raises PoisonedInputError for the result of a refused node."""
    if is_poisoned(value):
        raise PoisonedInputError
    if isinstance(value, SequenceValue):
        return Structure("sequence", value.dtype, tuple(structure_of(item) for item in value.values))
    if isinstance(value, StackedSequence):
        return Structure("stack", None, (structure_of(value.tensor),))
    if isinstance(value, OptionalValue):
        return Structure("optional", None, () if value.value is None else (structure_of(value.value),))
    assert isinstance(value, (Constant, Symbolic, Runtime))
    return Structure("tensor", value.dtype)


def tensors_in(value: Value) -> Iterator[Tensor]:
    """Yield the tensors of a value, in order."""
    if isinstance(value, SequenceValue):
        for item in value.values:
            yield from tensors_in(item)
    elif isinstance(value, StackedSequence):
        yield value.tensor
    elif isinstance(value, OptionalValue):
        if value.value is not None:
            yield from tensors_in(value.value)
    elif isinstance(value, (Constant, Symbolic, Runtime)):
        yield value
    else:
        raise PoisonedInputError


def rebuild(structure: Structure, tensors: Iterator[Tensor]) -> Value:
    """Return the value of that structure built from the next tensors."""
    if structure.kind == "sequence":
        return SequenceValue([rebuild(part, tensors) for part in structure.parts], structure.dtype)
    if structure.kind == "stack":
        return StackedSequence(next(tensors))
    if structure.kind == "optional":
        return OptionalValue(rebuild(structure.parts[0], tensors) if structure.parts else None)
    return next(tensors)


def same_structure(left: Structure, right: Structure) -> bool:
    """True if two values contain the same kinds of values; a sequence's declared element type is ignored."""
    if left.kind != right.kind or len(left.parts) != len(right.parts):
        return False
    if left.kind == "tensor":
        return left.dtype == right.dtype
    return all(same_structure(a, b) for a, b in zip(left.parts, right.parts, strict=True))


def materialized(context: NodeContext, tensor: Tensor) -> relax.Expr:
    """Return a tensor as an expression; refuses types without a run-time form."""
    if not dtypes.is_carried(tensor.dtype):
        context.refuse(f"{tensor.dtype} tensors are not supported at run time")
    return context.importer.builder.materialize(tensor)


def sources_with_captures(context: NodeContext, values: Sequence[Value] = ()) -> frozenset[str]:
    """Return the model inputs that a node with subgraphs depends on, through its inputs and captured values."""
    sources = context.sources().union(*(sources_of(value) for value in values))
    for graph in subgraphs(context.node):
        for name in captured_names(graph):
            sources |= sources_of(context.scope.lookup(name))
    return sources


def require_known(context: NodeContext, inputs: Sequence[int]) -> None:
    """Raise InputValueRequiredError for the first of these inputs that the caller can fix."""
    for index in inputs:
        if context.has_input(index) and sources_of(context.tensor(index)):
            context.constant(index)


Variables = Sequence[tvm.ir.Var]


@dataclass(frozen=True)
class Lifted:
    """A private function; `captures` are variables of the enclosing code, `sizes` its symbolic sizes."""

    variable: tvm.ir.GlobalVar
    captures: tuple[tvm.ir.Var, ...]
    sizes: tuple[tvm.ir.Expr, ...]

    def call(self, arguments: Sequence[relax.Expr]) -> relax.Call:
        """Return a call from the code it was lifted out of."""
        return self.call_with(arguments, self.captures, self.sizes)

    def call_with(
        self, arguments: Sequence[relax.Expr], captures: Sequence[relax.Expr], sizes: Sequence[tvm.ir.Expr]
    ) -> relax.Call:
        """Return a call with other variables for its captures."""
        holder = [relax.ShapeExpr(list(sizes))] if sizes else []
        return relax.Call(self.variable, [*arguments, *captures, *holder])


def lift(
    context: NodeContext,
    name: str,
    parameters: Callable[[], Variables],
    results: Callable[[Variables], Sequence[relax.Expr]],
) -> Lifted:
    """Emit the code of `results` as a function from `parameters` to a tuple of results."""
    builder = context.importer.builder
    with builder.sizes_scope():
        variables = list(parameters())
        with function_body(builder, variables) as body:
            returned = builder.block_builder.emit(relax.Tuple(list(results(variables))))
            body.append(returned)
    code = body[-1]
    own = set(variables)
    captures = [v for v in relax.analysis.free_vars(code) if v not in own and not isinstance(v.ty, tvm.ir.PrimType)]
    function = relax.Function([*variables, *captures], code, is_pure=True)
    sizes = list(relax.analysis.free_symbolic_vars(function))
    if sizes:
        function = relax.Function([*variables, *captures, size_holder(sizes)], code, is_pure=True)
    copy = relax.utils.copy_with_new_vars(function)
    variable = builder.block_builder.add_func(copy, builder.unique_name(name))
    return Lifted(variable, tuple(captures), tuple(sizes))


def size_holder(sizes: Sequence[tvm.ir.Expr]) -> tvm.ir.Var:
    """Return the parameter that passes a function the symbolic sizes that none of its tensors has."""
    return tvm.ir.Var("sizes", relax.ShapeType(list(sizes)))


@contextmanager
def function_body(builder: Builder, parameters: Variables) -> Iterator[list[relax.Expr]]:
    """Context for the code of a separate function; results are appended to the list, which then holds the function's
    body."""
    block_builder = builder.block_builder
    block_builder.begin_scope(list(parameters))
    returned: list[relax.Expr] = []
    try:
        with builder.region() as blocks:
            yield returned
    finally:
        block_builder.end_scope()
    returned.append(block_builder.normalize(relax.SeqExpr(blocks, returned[-1])))
