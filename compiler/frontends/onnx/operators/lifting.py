"""Private functions made of subgraphs: what a subgraph takes from around it becomes the function's trailing parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import relax

from compiler.frontends.onnx.context import NodeContext


@dataclass(frozen=True)
class Lifted:
    """A private function; `captures` are variables of the enclosing code, `sizes` symbolic sizes of it."""

    variable: tvm.ir.GlobalVar
    captures: tuple[relax.Expr, ...]
    sizes: tuple[tvm.ir.Expr, ...]

    def call(self, arguments: Sequence[relax.Expr]) -> relax.Call:
        """Call it from the code it was lifted out of."""
        return relax.Call(self.variable, [*arguments, *self.trailing()])

    def trailing(self) -> list[relax.Expr]:
        """The arguments that stand for what it captured."""
        return [*self.captures, *([relax.ShapeExpr(list(self.sizes))] if self.sizes else [])]


def lift(
    context: NodeContext, name: str, parameters: Sequence[tvm.ir.Var], results: Callable[[], Sequence[relax.Expr]]
) -> Lifted:
    """The code that `results` emits as a function from `parameters` to the tuple of what it returns."""
    builder = context.importer.builder
    block_builder = builder.block_builder
    block_builder.begin_scope(list(parameters))
    try:
        with builder.region() as blocks:
            returned = block_builder.emit(relax.Tuple(list(results())))
    finally:
        block_builder.end_scope()
    body = block_builder.normalize(relax.SeqExpr(blocks, returned))
    own = set(parameters)
    free = relax.analysis.free_vars(body)
    captures = [v for v in free if v not in own and not isinstance(v.ty, tvm.ir.PrimType)]
    function = relax.Function([*parameters, *captures], body, is_pure=True)
    sizes = list(relax.analysis.free_symbolic_vars(function))
    if sizes:
        holder = tvm.ir.Var("sizes", relax.ShapeType(sizes))
        function = relax.Function([*parameters, *captures, holder], body, is_pure=True)
    copy = relax.utils.copy_with_new_vars(function)
    variable = block_builder.add_func(copy, builder.unique_name(name))
    return Lifted(variable, tuple(captures), tuple(sizes))
