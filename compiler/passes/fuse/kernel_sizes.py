"""gather-sizes: pass the sizes that a group of kernels reads as one shape.

Grouping passes a function the sizes that its tensors' shapes do not determine as one shape, and the sizes that its
kernels take as arguments individually. Merging a group that has both fails in TVM (a size is redefined). Such a group
takes all of them in the shape, from which, unlike from single sizes, TVM can also derive the type of a call:

    group(a, total, shape(seq, past))  =>  group(a, shape(seq, past, total))

separate-sizes: put whatever defines or checks a symbolic size before everything that reads it, in its own block.

In a dataflow block, only the variables read determine the order. A `match_cast` that defines a symbolic size is not
ordered this way: kernels read the size only in their types. Passes that move kernels, such as operator grouping, would
move them before it. So the block is split at each such cast, as early as its operands allow:

    dataflow: a; count; match_cast(count, [n]); f(a); g(a, n)
    =>  dataflow: count;  match_cast(count, [n]);  dataflow: a; f(a); g(a, n)

The same holds for a cast that checks computed sizes: no variable orders the code that relies on the check after it.

specialize-sizes: specialize kernels with a symbolic size to the known size they are called with.

Constant folding makes sizes known. A single kernel works with either, but TVM cannot merge a group in which some
kernels know a size and others do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule, PrimType
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.canonicalize.spell_sizes import kernel_tensors, with_changed_calls
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import bindings_of, rewritable_functions, with_functions
from schedules.ir.tvm_types import BindingBlock, Call, Expr, PrimFunc, SeqExpr


@graph_pass("gather-sizes", summary="Give groups of kernels their sizes as one shape", required=True)
def gather_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Groups with both sizes and shapes among their parameters take the sizes in the shape."""
    mixed = {variable: function for variable, function in mod.functions.items() if _is_mixed(function)}
    if not mixed:
        return mod
    caller = _Caller(mod, mixed)
    for variable, function in rewritable_functions(mod):
        caller.builder_.update_func(variable, caller.visit_expr(function))
    result = caller.builder_.finalize()
    for variable in mixed:
        del result[variable]
    return result


def _is_mixed(function: Expr) -> bool:
    if not isinstance(function, relax.Function) or "Primitive" not in (function.attrs or {}):
        return False
    return any(map(_is_size, function.params)) and any(map(_is_shape, function.params))


def _is_size(value: Expr) -> bool:
    return isinstance(value.ty, PrimType)


def _is_shape(value: Expr) -> bool:
    return isinstance(value.ty, relax.ShapeType)


def _gathered(function: Expr) -> Expr:
    """Return the function with one shape as its last parameter in place of all sizes and shapes."""
    shape = relax.Var("sizes", relax.ShapeType(_sizes(function.params, function.params)))
    return relax.Function(
        [*_others(function.params, function.params), shape],
        function.body,
        function.ret_ty,
        function.is_pure,
        function.attrs,
    )


def _sizes(values: Sequence[Expr], parameters: Sequence[Expr]) -> list[Expr]:
    """Return the sizes among parameters or arguments: those of shapes, then single ones."""
    pairs = list(zip(values, parameters, strict=True))
    of_shapes = [size for value, parameter in pairs if _is_shape(parameter) for size in value.ty.values]
    return [*of_shapes, *(value for value, parameter in pairs if _is_size(parameter))]


def _others(values: Sequence[Expr], parameters: Sequence[Expr]) -> list[Expr]:
    return [
        value
        for value, parameter in zip(values, parameters, strict=True)
        if not _is_size(parameter) and not _is_shape(parameter)
    ]


@mutator
class _Caller(PyExprMutator):
    """Calls the changed functions instead of the mixed ones."""

    def __init__(self, mod: IRModule, mixed: dict[GlobalVar, Expr]) -> None:
        super().__init__(mod)
        self._parameters = {variable: function.params for variable, function in mixed.items()}
        self._changed = {
            variable: self.builder_.add_func(_gathered(function), variable.name_hint)
            for variable, function in mixed.items()
        }

    def visit_call_(self, call: Call) -> Call:
        if call.op not in self._changed:
            return super().visit_call_(call)
        parameters = self._parameters[call.op]
        arguments = [*_others(call.args, parameters), relax.ShapeExpr(_sizes(call.args, parameters))]
        return relax.Call(self._changed[call.op], arguments, call.attrs, call.ty_args, call.span)


Binding: TypeAlias = relax.Binding
Var: TypeAlias = relax.Var


@graph_pass("separate-sizes", summary="Cut dataflow blocks where a size gets its value or is checked")
def separate_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Puts each `match_cast` that defines or checks a size into a plain block, as early as its operands allow."""
    changed = {}
    for variable, function in rewritable_functions(mod):
        if any(isinstance(binding, relax.MatchCast) for binding in bindings_of(function.body)):
            cutter = _Cutter(mod, function.params)
            rewritten = cutter.visit_expr(function)
            if cutter.cuts:
                changed[variable] = rewritten
    return with_functions(mod, changed)


@mutator
class _Cutter(PyExprMutator):
    def __init__(self, mod: IRModule, params: Sequence[Var]) -> None:
        super().__init__(mod)
        self.cuts = 0
        self._known: set[Var] = set()
        for parameter in params:
            self._known.update(relax.analysis.definable_tir_vars_in_type(parameter.ty))
        self._escaping: set[Var] = set()

    def visit_seq_expr_(self, sequence: SeqExpr) -> Expr:
        blocks = [part for block in sequence.blocks for part in self._parts(block)]
        return self.visit_expr_post_order(relax.SeqExpr(blocks, sequence.body, sequence.span))

    def visit_dataflow_var_def_(self, variable: Var) -> Var:
        if variable not in self._escaping:
            return variable
        escaped = relax.Var(variable.name, variable.ty)
        self.set_var_remap(variable, escaped)
        return escaped

    def _parts(self, block: BindingBlock) -> list[BindingBlock]:
        """Split the block at bindings that define sizes."""
        bindings = list(block.bindings)
        defining = [i for i, binding in enumerate(bindings) if self._new_sizes(binding) or _checks_sizes(binding)]
        if not isinstance(block, relax.DataflowBlock) or not defining:
            return [block]
        self.cuts += len(defining)
        groups, rest = _grouped(bindings, defining)
        self._mark_escaping([*groups, rest])
        parts: list[Expr] = []
        for group in groups:
            if len(group) > 1:
                parts.append(relax.DataflowBlock(group[:-1]))
            parts.append(relax.BindingBlock(group[-1:]))
        return [*parts, relax.DataflowBlock(rest)] if rest else parts

    def _new_sizes(self, binding: Binding) -> bool:
        """True if the binding defines new sizes, which count as defined from then on."""
        if not isinstance(binding, relax.MatchCast):
            return False
        sizes = set(relax.analysis.definable_tir_vars_in_type(binding.ty)) - self._known
        self._known |= sizes
        return bool(sizes)

    def _mark_escaping(self, groups: Sequence[Sequence[Binding]]) -> None:
        """Mark variables that are read outside of their future block, or defined outside of any dataflow block."""
        home = {}
        for index, group in enumerate(groups):
            for position, binding in enumerate(group):
                home_of_binding = (index, position == len(group) - 1 and index < len(groups) - 1)
                home[binding.var] = home_of_binding
                reads = {
                    variable for variable in _reads(binding) if home.get(variable, home_of_binding) != home_of_binding
                }
                self._escaping |= reads
                if home_of_binding[1]:
                    self._escaping.add(binding.var)


def _reads(binding: Binding) -> set[Var]:
    """Return the variables and sizes that a binding reads, also in its type."""
    read = set(relax.analysis.free_vars(binding.value))
    if isinstance(binding, relax.MatchCast):
        return read | set(relax.analysis.tir_vars_in_type(binding.ty))
    return read | set(relax.analysis.tir_vars_in_type(binding.value.ty))


def _checks_sizes(binding: Binding) -> bool:
    """True if it checks computed sizes, which no kernel reads: code that relies on the check must not move before
    it."""
    return isinstance(binding, relax.MatchCast) and isinstance(binding.value.ty, relax.ShapeType)


def _grouped(bindings: Sequence[Binding], defining: Sequence[int]) -> tuple[list[list[Binding]], list[Binding]]:
    """Return each defining binding, preceded by its dependencies, in order; and all other bindings."""
    makers: dict[Var, int] = {}
    needs: list[set[int]] = []
    for index, binding in enumerate(bindings):
        needs.append({makers[variable] for variable in _reads(binding) if variable in makers})
        makers[binding.var] = index
        if index in defining:
            for size in relax.analysis.definable_tir_vars_in_type(binding.ty):
                makers.setdefault(size, index)
    placed: set[int] = set()
    groups = []
    for index in defining:
        members, waiting = {index}, [index]
        while waiting:
            fresh = needs[waiting.pop()] - placed - members
            members |= fresh
            waiting.extend(fresh)
        groups.append([bindings[each] for each in sorted(members)])
        placed |= members
    return groups, [binding for index, binding in enumerate(bindings) if index not in placed]


@graph_pass("specialize-sizes", summary="Give kernels the sizes that are known where they are called", required=True)
def specialize_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Every such call gets a copy of its kernel with known sizes."""
    return with_changed_calls(mod, lambda kernel, call: _known(kernel, call) is not None, _specialized_call)


def _known(kernel: PrimFunc, call: Call) -> tuple[int, list[Expr]] | None:
    """Return a parameter with a symbolic size known at the call, and its shape with that size; None if there is
    none."""
    if not isinstance(kernel, tirx.PrimFunc):
        return None
    for index, (parameter, ty) in enumerate(zip(kernel.params, kernel_tensors(call), strict=False)):
        shape = ty.shape if isinstance(ty, relax.TensorType) else None
        if not isinstance(shape, relax.ShapeExpr) or not isinstance(parameter.ty, tirx.BufferType):
            continue
        sizes = _joined(list(parameter.ty.shape), list(shape.values))
        if sizes is not None:
            return index, sizes
    return None


def _joined(own: Sequence[Expr], given: Sequence[Expr]) -> list[Expr] | None:
    known = [isinstance(a, tirx.Var) and isinstance(b, tirx.IntImm) for a, b in zip(own, given, strict=True)]
    return [b if new else a for a, b, new in zip(own, given, known, strict=True)] if any(known) else None


def _specialized(kernel: PrimFunc, call: Call) -> PrimFunc:
    while (found := _known(kernel, call)) is not None:
        index, shape = found
        parameter = kernel.params[index]
        ty = parameter.ty
        buffer = tirx.decl_buffer(shape, ty.dtype, parameter.name, strides=ty.strides, elem_offset=ty.elem_offset)
        kernel = kernel.specialize({parameter: buffer})
    return kernel


def _specialized_call(builder: relax.BlockBuilder, kernel: PrimFunc, call: Call) -> Call:
    special = _specialized(kernel, call)
    if special is kernel:
        return call
    variable = builder.add_func(special, call.args[0].name_hint)
    return relax.Call(call.op, [variable, *list(call.args)[1:]], call.attrs, call.ty_args, call.span)
