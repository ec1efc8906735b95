"""Private functions made of subgraphs: captured values become trailing parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import tvm
from tvm import relax

from compiler.frontends.onnx.builder import Builder
from compiler.frontends.onnx.context import NodeContext

Variables = Sequence[tvm.ir.Var]


@dataclass(frozen=True)
class Lifted:
    """A private function; `captures` are variables of the enclosing code, `sizes` symbolic sizes of it."""

    variable: tvm.ir.GlobalVar
    captures: tuple[tvm.ir.Var, ...]
    sizes: tuple[tvm.ir.Expr, ...]

    def call(self, arguments: Sequence[relax.Expr]) -> relax.Call:
        """Call it from the code it was lifted out of."""
        return self.call_with(arguments, self.captures, self.sizes)

    def call_with(
        self, arguments: Sequence[relax.Expr], captures: Sequence[relax.Expr], sizes: Sequence[tvm.ir.Expr]
    ) -> relax.Call:
        """Call it where other variables stand for what it captured."""
        holder = [relax.ShapeExpr(list(sizes))] if sizes else []
        return relax.Call(self.variable, [*arguments, *captures, *holder])


def lift(
    context: NodeContext,
    name: str,
    parameters: Callable[[], Variables],
    results: Callable[[Variables], Sequence[relax.Expr]],
) -> Lifted:
    """The code that `results` emits as a function from `parameters` to the tuple of what it returns."""
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
    """The parameter by which a function gets symbolic sizes that no tensor of it has."""
    return tvm.ir.Var("sizes", relax.ShapeType(list(sizes)))


@contextmanager
def function_body(builder: Builder, parameters: Variables) -> Iterator[list[relax.Expr]]:
    """Code of a function of its own; the list takes what it returns and then ends with the function's body."""
    block_builder = builder.block_builder
    block_builder.begin_scope(list(parameters))
    returned: list[relax.Expr] = []
    try:
        with builder.region() as blocks:
            yield returned
    finally:
        block_builder.end_scope()
    returned.append(block_builder.normalize(relax.SeqExpr(blocks, returned[-1])))
