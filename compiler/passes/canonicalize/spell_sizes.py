"""spell-sizes: sizes that can be proved equal are written in one way, in the types of tensors and of kernels' buffers.

Sizes come from the importer, TVM's type inference, and the expressions of its kernels: `(n + 2 - 3) // 2 + 1`,
`(n - 1) // 2 + 1` and `(n + 1) // 2` are one size. TVM compares them by structure where it joins kernels, and operators
of equal shapes are lowered to simpler kernels than those that may broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tvm import relax, tirx
from tvm.ir import Call, GlobalVar, IRModule, Op, Var
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.canonicalize.kernels_of_sizes import respelled_kernels
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import rewritable_functions, update_functions
from schedules.ir.size_proofs import CONGRUENCES, Congruence, SizeSpellings, complexity
from schedules.ir.tir import StructuralKey, structural_map, structural_walk
from schedules.ir.tvm_types import Expr, Function


@graph_pass("spell-sizes", summary="Write sizes that are equal in one way")
def spell_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """The shortest spelling in a function stands for all; kernels have those of their calls."""
    return with_spelled_sizes(mod)


def with_spelled_sizes(mod: IRModule) -> IRModule:
    """The module after spell-sizes."""
    known = {name: Congruence(int(pair[0]), int(pair[1])) for name, pair in _congruences(mod).items()}
    changed: dict[GlobalVar, Function] = {}
    for variable, function in rewritable_functions(mod):
        spelled = _spelled(function, known)
        if _lost(spelled):
            spelled = _Inferred(mod, known).visit_expr(spelled)
        if spelled is not function:
            changed[variable] = spelled
    return respelled_kernels(update_functions(mod, changed))


def operators_without_shapes(mod: IRModule) -> int:
    """The number of operators' results without a shape: TVM could not prove the sizes of operands equal."""
    return sum(_lost(function) for _, function in rewritable_functions(mod))


def _lost(function: Function) -> int:
    calls: list[Call] = []
    structural_walk(function, (Call, calls.append))
    return sum(_is_lost(call) for call in calls)


def _is_lost(call: Call) -> bool:
    return isinstance(call.op, Op) and isinstance(call.ty, relax.TensorType) and call.ty.shape is None


@mutator
class _Inferred(PyExprMutator):
    """Infers the types of operators again, with one spelling of each size from operator to operator."""

    def __init__(self, mod: IRModule, known: Mapping[str, Congruence]) -> None:
        super().__init__(mod)
        self._spellings = SizeSpellings(known)

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if _is_lost(call):
            call = self.builder_.normalize(relax.Call(call.op, call.args, call.attrs, call.ty_args, call.span))
        if not isinstance(call, Call) or not isinstance(call.op, Op) or not isinstance(call.ty, relax.TensorType):
            return call
        if call.op.name == "relax.call_tir" or not isinstance(call.ty.shape, relax.ShapeExpr):
            return call
        sizes = [size if isinstance(size, tirx.IntImm) else self._spellings.of(size) for size in call.ty.shape.values]
        if all(new.same_as(old) for new, old in zip(sizes, call.ty.shape.values, strict=True)):
            return call
        spelled = relax.TensorType(relax.ShapeExpr(sizes), call.ty.dtype, call.ty.vdevice)
        return relax.Call(call.op, call.args, call.attrs, call.ty_args, call.span, ret_ty=spelled)


def _congruences(mod: IRModule) -> Mapping[str, tuple[int, int]]:
    for variable, function in mod.functions_items():
        if variable.name_hint == "main" and function.attrs is not None and CONGRUENCES in function.attrs:
            return dict(function.attrs[CONGRUENCES])
    return {}


def _formulas(function: Function) -> Iterator[Expr]:
    """The sizes of a function that are not numbers."""
    shapes: list[Expr] = []
    structural_walk(function, (relax.ShapeExpr, shapes.append))
    for shape in shapes:
        yield from (size for size in shape.values if not isinstance(size, tirx.IntImm))


def _spelled(function: Function, known: Mapping[str, Congruence]) -> Function:
    """The function with one spelling of each size; itself where it has no other."""
    sizes = {StructuralKey(size): size for size in _formulas(function)}
    if all(isinstance(size, Var) for size in sizes.values()):
        return function
    spellings = SizeSpellings(known)
    for size in sorted(sizes.values(), key=complexity):
        spellings.of(size)
    if all(spellings.of(size).same_as(size) for size in sizes.values()):
        return function

    def spelled(shape: Expr) -> Expr:
        sizes = [size if isinstance(size, (tirx.IntImm, Var)) else spellings.of(size) for size in shape.values]
        return relax.ShapeExpr(sizes, shape.span)

    return structural_map(function, (relax.ShapeExpr, spelled))
