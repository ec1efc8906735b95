"""lift-workspaces: turn buffers that pass data between a kernel's launches into tensors of the module.

A device cannot allocate memory while it runs a kernel. As additional results of the call, such buffers are placed by
`plan-memory` like all other tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, s_tir, tirx
from tvm.ir import GlobalVar, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.tirx import PrimFunc

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import operator_name
from schedules.ir.expression import substitute
from schedules.ir.stages import dtype_of, shape_of
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Buffer, Call, Expr, Type, Var


@graph_pass(
    "lift-workspaces", summary="Turn buffers between a kernel's launches into tensors, on devices", required=True
)
def lift_workspaces(mod: IRModule, context: PipelineContext) -> IRModule:
    """Does nothing for targets whose kernels allocate their own (`Target.lifts_workspaces`)."""
    if context.target is None or not context.target.lifts_workspaces:
        return mod
    lifted: dict[GlobalVar, tuple[PrimFunc, list[Buffer]]] = {}
    functions = {}
    for variable, function in mod.functions_items():
        if isinstance(function, PrimFunc) and (buffers := _workspaces(function)):
            changed = _with_parameters(function, buffers)
            fresh = GlobalVar(str(variable.name_hint))
            set_type(fresh, changed.ty)  # the calls are checked against it
            lifted[variable], functions[fresh] = (fresh, buffers), changed
        else:
            functions[variable] = function
    if not lifted:
        return mod
    changed_mod = IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos)
    rewriter = _Calls(changed_mod, lifted)
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function):
            rewriter.builder_.update_func(variable, rewriter.visit_expr(function))
    return rewriter.builder_.get()


def with_workspaces_as_parameters(function: PrimFunc) -> tuple[PrimFunc, int]:
    """Turn the buffers that a kernel's launches share into parameters, its last results; return their number too."""
    buffers = _workspaces(function)
    return (_with_parameters(function, buffers), len(buffers)) if buffers else (function, 0)


def with_equal_workspaces(functions: Sequence[PrimFunc]) -> tuple[list[PrimFunc | None], int]:
    """Give schedules of one kernel equal parameters: for each buffer shared by launches, the largest one. Return the
    functions and the number of buffers.

    A schedule with fewer buffers ignores the rest. None replaces one whose buffers have other types.
    """
    workspaces = [_workspaces(function) for function in functions]
    largest: list[Buffer] = []
    for buffers in workspaces:
        for index, buffer in enumerate(buffers):
            if index == len(largest):
                largest.append(buffer)
            elif _holds(buffer, largest[index]):
                largest[index] = buffer
    return [_with_workspaces(function, largest) for function in functions], len(largest)


def _with_workspaces(function: PrimFunc, target: Sequence[Buffer]) -> PrimFunc | None:
    workspaces = _workspaces(function)
    if not all(_holds(larger, buffer) for larger, buffer in zip(target, workspaces, strict=False)):
        return None
    fresh = [tirx.decl_buffer(list(each.ty.shape), dtype_of(each), str(each.name)) for each in target]
    changed = _with_parameters(function, workspaces)
    body = substitute(changed.body, dict(zip(workspaces, fresh, strict=False)))
    parameters, count = list(changed.params), _scalars(function)
    index = len(parameters) - count - len(workspaces)
    given = [*parameters[:index], *fresh, *parameters[len(parameters) - count :]]
    return PrimFunc(given, body, changed.ret_type, attrs=changed.attrs)


def _holds(larger: Buffer, buffer: Buffer) -> bool:
    """True if a buffer can stand in for another: it is equal, or both are flat and it is not smaller."""
    sizes, least = shape_of(larger), shape_of(buffer)
    if dtype_of(larger) != dtype_of(buffer):
        return False
    flat = len(sizes) == len(least) == 1 and isinstance(sizes[0], int) and isinstance(least[0], int)
    return sizes[0] >= least[0] if flat else sizes == least


def _workspaces(function: PrimFunc) -> list[Expr]:
    """Return the function-wide buffers in device memory."""
    if not isinstance(function.body, s_tir.SBlockRealize):
        return []
    return [each for each in function.body.block.alloc_buffers if str(each.ty.storage_scope) in ("", "global")]


def _scalars(function: PrimFunc) -> int:
    """Return the number of trailing scalar parameters."""
    count = 0
    for parameter in reversed(list(function.params)):
        if tirx.is_buffer_var(parameter):
            break
        count += 1
    return count


def _with_parameters(function: PrimFunc, buffers: list[Expr]) -> PrimFunc:
    """Return the function with these buffers as its last results."""
    parameters = list(function.params)
    index = len(parameters) - _scalars(function)
    root = function.body.block
    remaining = [each for each in root.alloc_buffers if not any(each.same_as(other) for other in buffers)]
    block = s_tir.SBlock(
        root.iter_vars,
        root.reads,
        root.writes,
        root.name_hint,
        root.body,
        root.init,
        remaining,
        root.match_buffers,
        root.annotations,
    )
    body = s_tir.SBlockRealize(function.body.iter_values, function.body.predicate, block)
    return PrimFunc([*parameters[:index], *buffers, *parameters[index:]], body, function.ret_type, attrs=function.attrs)


@mutator
class _Calls(PyExprMutator):
    """Calls of changed functions receive the additional results and return the original ones."""

    def __init__(self, mod: IRModule, lifted: dict[GlobalVar, tuple[GlobalVar, list[Expr]]]) -> None:
        super().__init__(mod)
        self._mod = mod
        self._lifted = lifted

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if operator_name(call) != "relax.call_tir" or call.args[0] not in self._lifted:
            return call
        callee, buffers = self._lifted[call.args[0]]
        function = self._mod[callee]
        results = call.ty_args[0]
        single = not isinstance(results, relax.TupleType)
        types = [results] if single else list(results.fields)
        numbers = list(call.args[2].values) if len(call.args) > 2 else []
        sizes = _sizes(function, [*(each.ty for each in call.args[1].fields), *types], numbers)
        further = [
            relax.TensorType([substitute(size, sizes) for size in each.ty.shape], str(each.dtype)) for each in buffers
        ]
        whole = relax.TupleType([*types, *further])
        made = relax.Call(call.op, [callee, *call.args[1:]], call.attrs, [whole], call.span, ret_ty=whole)
        variable = self.builder_.emit(made)
        items = [relax.TupleGetItem(variable, index) for index in range(len(types))]
        return items[0] if single else relax.Tuple(items)


def _sizes(function: PrimFunc, types: list[Type], numbers: list[int]) -> dict[Var, int]:
    """Return the value of each symbolic size of a function at a call, from its arguments' types."""
    sizes: dict[Var, int] = {}
    parameters = list(function.params)
    for parameter, ty in zip(parameters, types, strict=False):
        if not tirx.is_buffer_var(parameter) or not isinstance(ty, relax.TensorType) or ty.shape is None:
            continue
        for size, value in zip(parameter.ty.shape, ty.shape.values, strict=True):
            if isinstance(size, tirx.Var) and size not in sizes:
                sizes[size] = value
    if numbers:
        sizes.update(zip(parameters[len(parameters) - len(numbers) :], numbers, strict=True))
    return sizes
