"""spell-sizes: write provably equal sizes in one way, in tensor types and kernel buffers.

Sizes come from the importer, TVM's type inference, and the expressions of its kernels: `(n + 2 - 3) // 2 + 1`, `(n -
1) // 2 + 1` and `(n + 1) // 2` are one size. TVM compares them structurally when it fuses kernels, and operators on
equal shapes are lowered to simpler kernels than those that may broadcast. Kernel buffers get the sizes of the
tensors passed to them, in the same spelling: variables that are one size at the call become one, and variables whose
size is computed at the call become its formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from tvm import relax, tirx
from tvm.ir import Call, GlobalVar, IRModule, Op, Var
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions, update_functions
from schedules.ir.expression import nodes
from schedules.ir.size_proofs import CONGRUENCES, Congruence, SizeSpellings, complexity
from schedules.ir.tir import StructuralKey, structural_equal, structural_map, structural_walk
from schedules.ir.tvm_types import Expr, Function, PrimFunc, Type


@graph_pass("spell-sizes", summary="Write equal sizes the same way")
def spell_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """The shortest spelling in a function replaces all others; kernels use that of their calls."""
    return with_spelled_sizes(mod)


def with_spelled_sizes(mod: IRModule) -> IRModule:
    """Return the module after spell-sizes."""
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
    """Count operator results without a shape, whose operand sizes TVM could not prove equal."""
    return sum(_lost(function) for _, function in rewritable_functions(mod))


def _lost(function: Function) -> int:
    calls: list[Call] = []
    structural_walk(function, (Call, calls.append))
    return sum(_is_lost(call) for call in calls)


def _is_lost(call: Call) -> bool:
    return isinstance(call.op, Op) and isinstance(call.ty, relax.TensorType) and call.ty.shape is None


@mutator
class _Inferred(PyExprMutator):
    """Infers operator types again, with one spelling of each size across operators."""

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
    """Yield the non-constant sizes of a function."""
    shapes: list[Expr] = []
    structural_walk(function, (relax.ShapeExpr, shapes.append))
    for shape in shapes:
        yield from (size for size in shape.values if not isinstance(size, tirx.IntImm))


def _spelled(function: Function, known: Mapping[str, Congruence]) -> Function:
    """Return the function with one spelling of each size; itself if nothing changes."""
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


Made: TypeAlias = "dict[tuple[object, ...], Expr]"
"""Respelled kernels, by name and sizes."""


def respelled_kernels(mod: IRModule) -> IRModule:
    """Redirect each call whose sizes are spelled differently from its kernel's to a respelled copy of the kernel."""
    variants: Made = {}
    return with_changed_calls(
        mod,
        lambda kernel, call: _Spelling(kernel, call).differs,
        lambda builder, kernel, call: respelled_call(builder, kernel, call, variants),
    )


def with_changed_calls(
    mod: IRModule,
    is_to_change: Callable[[PrimFunc, Call], bool],
    changed: Callable[[relax.BlockBuilder, PrimFunc, Call], Call],
) -> IRModule:
    """Apply `changed` to the `call_tir` calls that `is_to_change` selects; return `mod` itself if there are none."""
    if not any(
        _is_kernel_call(binding.value) and is_to_change(mod[binding.value.args[0]], binding.value)
        for _, function in rewritable_functions(mod)
        for binding in bindings_of(function.body)
    ):
        return mod
    caller = _Caller(mod, changed)
    for variable, function in rewritable_functions(mod):
        caller.builder_.update_func(variable, caller.visit_expr(function))
    return relax.transform.DeadCodeElimination(["main"])(caller.builder_.finalize())


def respelled_call(builder: relax.BlockBuilder, kernel: PrimFunc, call: Call, made: Made) -> Call:
    """Return a `call_tir` of a kernel that spells sizes like the call's types; the kernel is added unless in `made`."""
    spelling, arguments = _Spelling(kernel, call), list(call.args[1].fields)
    if not spelling.differs:
        return call
    key = (str(call.args[0].name_hint), *spelling.key())
    if key not in made:
        made[key] = builder.add_func(_respelled(kernel, spelling, len(arguments)), call.args[0].name_hint)
    given = relax.Tuple([*arguments, *spelling.more])
    return relax.Call(call.op, [made[key], given, *list(call.args)[2:]], call.attrs, call.ty_args, call.span)


def kernel_tensors(call: Call) -> list[Type]:
    """Return the types of a kernel's arguments and results, in parameter order."""
    outputs = call.ty_args[0]
    fields = list(outputs.fields) if isinstance(outputs, relax.TupleType) else [outputs]
    return [*(argument.ty for argument in call.args[1].fields), *fields]


def _is_kernel_call(value: Expr) -> bool:
    return operator_name(value) == "relax.call_tir"


class _Spelling:
    """Sizes of a kernel's buffers at a call, expressed in the kernel's variables.

    Attributes:
        shapes: shapes of the buffers that the kernel spells differently, by parameter position.
        more: the call's sizes that have no variable in the kernel, with their new variables.
        same: variables of the kernel's shapes that are one size at the call, with the first of them.
        computed: variables of the kernel's shapes whose size is computed at the call, with its formula.
    """

    def __init__(self, kernel: PrimFunc, call: Call) -> None:
        self.shapes: dict[int, list[Expr]] = {}
        self.more: dict[Var, Var] = {}
        self.same: dict[Var, Var] = {}
        self.computed: dict[Var, Expr] = {}
        self._own: dict[Var, Var] = {}
        if not isinstance(kernel, tirx.PrimFunc):
            return
        values: dict[Var, Expr] = {}
        pairs = self._pairs(kernel, call)
        for kernel_shape, call_shape in pairs.values():
            for size, call_size in zip(kernel_shape, call_shape, strict=True):
                if isinstance(size, Var):
                    values.setdefault(size, call_size)
        arguments = call.args[1].fields
        for parameter, argument in zip(kernel.params, arguments, strict=False):
            if not tirx.is_buffer_var(parameter):
                values.setdefault(parameter, argument)
        first: dict[StructuralKey, Var] = {}
        of_shapes = [(var, value) for var, value in values.items() if not any(map(var.same_as, kernel.params))]
        for var, value in of_shapes:
            if not isinstance(value, tirx.IntImm) and first.setdefault(StructuralKey(value), var) is not var:
                self.same[var] = first[StructuralKey(value)]
        self._own = {value: var for var, value in values.items() if isinstance(value, Var) and var not in self.same}
        sizes = [size for kernel_shape, _ in pairs.values() for size in kernel_shape]
        for var in dict.fromkeys(var for size in sizes for var in nodes(size, Var)):
            if var not in self.same and not isinstance(values.get(var, var), (Var, tirx.IntImm)):
                self.computed[var] = self._in_own_variables(values[var])
        for position, (kernel_shape, call_shape) in pairs.items():
            if not all(
                self._is_spelled_so(size, call_size, values)
                for size, call_size in zip(kernel_shape, call_shape, strict=True)
            ):
                self.shapes[position] = [
                    size if self._is_spelled_so(size, call_size, values) else self._in_own_variables(call_size)
                    for size, call_size in zip(kernel_shape, call_shape, strict=True)
                ]

    @property
    def differs(self) -> bool:
        return bool(self.shapes or self.same or self.computed)

    @staticmethod
    def _pairs(kernel: PrimFunc, call: Call) -> dict[int, tuple[list[Expr], list[Expr]]]:
        result = {}
        for position, (parameter, ty) in enumerate(zip(kernel.params, kernel_tensors(call), strict=False)):
            shape = ty.shape if isinstance(ty, relax.TensorType) else None
            if isinstance(shape, relax.ShapeExpr) and tirx.is_buffer_var(parameter):
                result[position] = (list(parameter.ty.shape), list(shape.values))
        return result

    @staticmethod
    def _is_spelled_so(size: Expr, wanted: Expr, values: dict[Var, Expr]) -> bool:
        if isinstance(size, (Var, tirx.IntImm)):
            return True
        named = structural_map(size, (Var, lambda var: values.get(var, var)))
        return bool(structural_equal(named, wanted))

    def _in_own_variables(self, size: Expr) -> Expr:
        def own(var: Var) -> Var:
            if var in self._own:
                return self._own[var]
            return self.more.setdefault(var, tirx.Var(var.name, var.ty))

        return structural_map(size, (Var, own))

    def key(self) -> tuple[object, ...]:
        """Key that is equal for calls that spell all sizes alike."""
        shapes = [(position, *map(StructuralKey, shape)) for position, shape in self.shapes.items()]
        computed = [(var.name, StructuralKey(size)) for var, size in self.computed.items()]
        return (*shapes, *computed, *(var.name for var in self.more), *(var.name for var in self.same))


def _respelled(kernel: PrimFunc, spelling: _Spelling, arguments: int) -> PrimFunc:
    """Return the kernel with these shapes, and their additional variables after its arguments."""
    shapes = {kernel.params[position]: shape for position, shape in spelling.shapes.items()}
    types = {StructuralKey(buffer.ty): _of_shape(buffer.ty, shape) for buffer, shape in shapes.items()}
    changed = structural_map(kernel, (tirx.BufferType, lambda ty: types.get(StructuralKey(ty), ty)))
    sizes = {**spelling.same, **spelling.computed}
    parameters = changed.params
    if sizes:
        # Parameters stay, but the body no longer reads those that are computed from others.
        read = [each for each in parameters if each not in sizes]
        changed = tirx.PrimFunc(read, changed.body, changed.ret_type, changed.attrs, changed.span)
        changed = structural_map(changed, (Var, lambda var: sizes.get(var, var)))
        left = iter(changed.params)
        parameters = [each if each in sizes else next(left) for each in parameters]
    parameters = [*parameters[:arguments], *spelling.more.values(), *parameters[arguments:]]
    return tirx.PrimFunc(parameters, changed.body, changed.ret_type, changed.attrs, changed.span)


def _of_shape(ty: tirx.BufferType, shape: Sequence[Expr]) -> tirx.BufferType:
    return tirx.decl_buffer(
        shape,
        ty.dtype,
        strides=ty.strides,
        elem_offset=ty.elem_offset,
        scope=ty.storage_scope,
        data_alignment=ty.data_alignment,
        offset_factor=ty.offset_factor,
        layout=ty.layout,
    ).ty


@mutator
class _Caller(PyExprMutator):
    def __init__(self, mod: IRModule, changed: Callable[[relax.BlockBuilder, PrimFunc, Call], Call]) -> None:
        super().__init__(mod)
        self._mod, self._changed = mod, changed

    def visit_call_(self, call: Call) -> Expr:
        call = super().visit_call_(call)
        return self._changed(self.builder_, self._mod[call.args[0]], call) if _is_kernel_call(call) else call
