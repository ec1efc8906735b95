"""prepare-runs: share the work that depends only on sizes between runs with equal sizes.

`main` checks its inputs, computes shapes, and allocates and frees each tensor on every run, which dominates small
networks: an allocation costs four times as much as a kernel call. This pass moves all of that to a function
`PREPARE_ENTRY`, whose results `RUN_ENTRY` takes in addition to the arguments of `main`. A runtime calls the former when
sizes change and the latter on every run; `main` is kept for runtimes that do neither.

Results returned to the caller are allocated in each run. If shapes depend on values, only tensors of known sizes are
prepared. If all results are in memory that `main` allocates, `RUN_KEEPING_ENTRY` is emitted too, whose results are also
prepared: for a runtime that copies small ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule
from tvm.relax.utils import copy_with_new_vars

from compiler.artifact.entries import MAIN_ENTRY, PREPARE_ENTRY, PREPARE_KEEPING_ENTRY, RUN_ENTRY, RUN_KEEPING_ENTRY
from compiler.passes.context import PipelineContext
from compiler.passes.lower.shape_heap import (
    ALLOCATE_HEAP,
    CHECK_TYPE,
    MAKE_SHAPE,
    MATCH_SHAPE,
    STORES,
    called,
    is_shape_function,
    matched,
)
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.substitution import children, leaves
from schedules.ir.tvm_types import Binding, Call, Expr, Function, Var

_ALLOCATIONS = ("relax.vm.alloc_storage", "relax.vm.alloc_tensor")
_FREE = "relax.vm.kill_object"
_CHECKS = (MATCH_SHAPE, CHECK_TYPE)
_READS_OF_HEAP = (MAKE_SHAPE, "vm.builtin.make_prim_value")
_VIEW = "vm.builtin.reshape"
# Builtins that do not retain arguments after their result is freed.
_KEEP_NOTHING = (*_CHECKS, *_READS_OF_HEAP, _VIEW, "vm.builtin.read_if_cond", "vm.builtin.call_tir_dyn")


# On GPUs, captured graphs own the tensors.
@graph_pass(
    "prepare-runs", summary="Share the work that depends only on sizes between runs with equal sizes", only="processor"
)
def prepare_runs(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after `lower-shapes` and the passes that check and share shapes."""
    entry = next((var for var, _ in mod.functions_items() if var.name_hint == MAIN_ENTRY), None)
    if entry is None or not isinstance(mod[entry].body, relax.SeqExpr):
        return mod
    added: dict[Var, Expr] = {}
    for keeps, names in ((False, (PREPARE_ENTRY, RUN_ENTRY)), (True, (PREPARE_KEEPING_ENTRY, RUN_KEEPING_ENTRY))):
        splits = (_Split(mod, mod[entry], len(context.parameters), sizes, keeps) for sizes in (True, False))
        split = next((each for each in splits if each.worthwhile), None)
        if split is not None:
            prepare, run = names
            added |= {GlobalVar(prepare): split.prepare(prepare), GlobalVar(run): split.run(run)}
    return IRModule({**dict(mod.functions_items()), **added}, mod.attrs, mod.global_infos) if added else mod


class _Split:
    """Bindings of `main` that depend only on its input sizes, or, without `with_sizes`, on nothing at all.

    With `keeps`, the memory of results is prepared as well.
    """

    def __init__(self, mod: IRModule, main: relax.Function, parameters: int, with_sizes: bool, keeps: bool) -> None:
        self._mod = mod
        self._with_sizes = with_sizes
        self._keeps = keeps
        self._main = main
        self._inputs = list(main.params)[: len(main.params) - parameters]
        self._bindings = [binding for block in main.body.blocks for binding in block.bindings]
        self._escaping = self._found_escaping()
        self._prepared: dict[Var, Binding] = {}  # prepared bindings by variable
        for binding in self._bindings:
            if self._can_prepare(binding):
                self._prepared[binding.var] = binding
        self._left = [binding for binding in self._bindings if not self._is_done(binding)]

    @property
    def worthwhile(self) -> bool:
        """True if an allocation can be prepared (with `keeps`, that of each result), and no remaining code writes to a
        prepared shape heap."""
        prepared = (binding.value for binding in self._prepared.values())
        if self._keeps and not all(self._is_kept(each) for each in self._results()):
            return False
        if not any(operator_name(value) in _ALLOCATIONS for value in prepared):
            return False
        if not self._with_sizes:
            return True
        return not any(self._writes_heap(call) for binding in self._left for call in _calls(binding.value))

    def _results(self) -> list[Expr]:
        """Return the tensors that `main` returns."""
        bound = {binding.var: binding.value for binding in self._bindings}
        results, pending = [], [self._main.body.body]
        while pending:
            leaf = pending.pop()
            value = bound.get(leaf) if isinstance(leaf, relax.Var) else leaf
            if isinstance(value, relax.Tuple):
                pending.extend(value.fields)
            elif isinstance(value, relax.Var):
                pending.append(value)
            else:
                results.append(leaf)
        return results

    def _is_kept(self, variable: Var) -> bool:
        """True if a variable is a prepared tensor, or a view of one."""
        if variable in self._prepared:
            return operator_name(self._prepared[variable].value) == "relax.vm.alloc_tensor"
        value = next((each.value for each in self._bindings if each.var.same_as(variable)), None)
        return isinstance(value, relax.Call) and called(value) == _VIEW and self._is_kept(value.args[0])

    def prepare(self, name: str) -> relax.Function:
        """(*inputs) -> the prepared values that `run` takes."""
        result = relax.Tuple(self._used())
        return _function(self._main, self._inputs, list(self._prepared.values()), result, name)

    def run(self, name: str) -> relax.Function:
        """(*inputs, *parameters, *prepared values) -> the results."""
        parameters = [*self._main.params, *self._used()]
        return _function(self._main, parameters, self._left, self._main.body.body, name)

    def _used(self) -> list[Expr]:
        """Return the prepared variables that the remaining code reads, in definition order."""
        read = {leaf for binding in self._left for leaf in leaves(binding.value)} | set(leaves(self._main.body.body))
        return [variable for variable in self._prepared if variable in read]

    def _is_done(self, binding: Binding) -> bool:
        """True if a binding is prepared, or frees a prepared value or a result."""
        if binding.var in self._prepared:
            return True
        if operator_name(binding.value) != _FREE:
            return False
        return binding.value.args[0] in self._prepared or binding.value.args[0] in self._escaping

    def _can_prepare(self, binding: Binding) -> bool:
        value = binding.value
        if not isinstance(binding, relax.VarBinding) or not isinstance(value, relax.Call):
            return False
        variables = [each for each in value.args if isinstance(each, relax.Var)]
        name = called(value)
        if name in _CHECKS:
            return value.args[0] in self._inputs and all(each in self._prepared for each in variables[1:])
        if not all(each in self._prepared for each in variables):
            return False
        if operator_name(value) in _ALLOCATIONS:
            return binding.var not in self._escaping
        if name == ALLOCATE_HEAP:
            return self._with_sizes
        return name in _READS_OF_HEAP or self._is_shape_function(value)

    def _found_escaping(self) -> set[Expr]:
        """Return variables whose memory may reach the caller or other code outside this function."""
        escaping = set() if self._keeps else set(leaves(self._main.body.body))
        for binding in reversed(self._bindings):
            if binding.var in escaping or any(self._may_keep(call) for call in _calls(binding.value)):
                escaping.update(leaves(binding.value))
        return escaping

    def _may_keep(self, call: Call) -> bool:
        """True if a call may retain an argument beyond the life of its result."""
        name = called(call)
        if name is not None:
            return name != ALLOCATE_HEAP and name not in _KEEP_NOTHING
        return not isinstance(call.op, GlobalVar) and operator_name(call) not in (*_ALLOCATIONS, _FREE)

    def _writes_heap(self, call: Call) -> bool:
        if called(call) == MATCH_SHAPE:
            return any(code == STORES for code, _ in matched(call))
        return self._is_shape_function(call)

    def _is_shape_function(self, call: Call) -> bool:
        if not isinstance(call.op, GlobalVar):
            return False
        callee = self._mod[call.op]
        return isinstance(callee, tirx.PrimFunc) and is_shape_function(callee)


def _calls(expression: Expr) -> Iterator[Call]:
    """Yield every call in an expression, including those in branches."""
    if isinstance(expression, relax.Call):
        yield expression
    for child in children(expression):
        yield from _calls(child)


def _function(
    main: Function, parameters: Sequence[Expr], bindings: list[Binding], result: Expr, name: str
) -> relax.Function:
    body = relax.SeqExpr([relax.BindingBlock(bindings)] if bindings else [], result)
    ty = main.ret_ty if result.same_as(main.body.body) else relax.TupleType([each.ty for each in result.fields])
    function = relax.Function(parameters, body, ty, main.is_pure, main.attrs)
    return copy_with_new_vars(function).with_attr("global_symbol", name)
