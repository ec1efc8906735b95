"""Kernels that differ only in integer constants are compiled once: the shared code takes the constants as arguments,
and each kernel's name is a few instructions that pass them.

Layers of a network with dynamic sizes often differ only in their channels. Kernels with static shapes are not shared,
because their code is specialized for those sizes.

This file also extracts a kernel's integer constants that may become arguments.

A constant may become an argument wherever code is no slower when the value is known only at run time: extents of loops
that are neither unrolled nor vectorized, strides, thresholds. The others remain: 0 and 1, lanes and steps of vectors,
sizes of small scratch buffers, arguments of intrinsics, and divisors in inner loops, where division by a constant is
much faster.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm_ffi.structural import WalkResult

from compiler.codegen.kernel_lowering import holds_statements
from schedules.codegen.nest import name_opaque, sequence
from schedules.ir.expression import DIVISIONS, constant_int
from schedules.ir.size_proofs import with_shape
from schedules.ir.stages import product
from schedules.ir.tir import StructuralKey, structural_map, structural_walk
from schedules.ir.tvm_types import Buffer, Call, Expr, GlobalVar, Node, PrimFunc, Stmt, Type, Var

Kernel: TypeAlias = "tuple[GlobalVar, PrimFunc]"  # its global variable and the PrimFunc
_TYPE = "int64"


@dataclass(frozen=True)
class SharedCall:
    """A call of shared code in place of a kernel: some of the kernel's own arguments, in order, followed by
    constants."""

    kernel: str
    given: tuple[int, ...]
    constants: tuple[int, ...]


def share_kernels(kernels: Sequence[Kernel]) -> tuple[list[Kernel], dict[str, SharedCall]]:
    """The kernels to build, and for every other name the kernel to call and its arguments."""
    built: list[Kernel | None] = list(kernels)
    names = {variable.name_hint for variable, _ in kernels}
    calls: dict[str, SharedCall] = {}
    for members in _alike(kernels):
        positions = [position for position, _ in members]
        name = _free_name(kernels[positions[0]][0].name_hint, names)
        function, constants = _shared([opened for _, opened in members])
        for (position, opened), own in zip(members, constants, strict=True):
            built[position] = None
            calls[kernels[position][0].name_hint] = SharedCall(name, tuple(opened.given), own)
        built[positions[0]] = tvm.ir.GlobalVar(name), function.with_attr("global_symbol", name)
    return [each for each in built if each is not None], calls


def _free_name(like: str, used_names: set[str]) -> str:
    name = f"{like}_shared"
    while name in used_names:
        name += "_"
    used_names.add(name)
    return name


def _alike(kernels: Sequence[Kernel]) -> list[list[tuple[int, OpenedKernel]]]:
    """Groups of two or more kernels, by position, that are equal except for constants that may become arguments."""
    by_signature: dict[Hashable, list[int]] = {}
    for position, (_, kernel) in enumerate(kernels):
        if may_open(kernel):
            by_signature.setdefault(_signature(kernel), []).append(position)
    by_hash: dict[Hashable, list[list[tuple[int, OpenedKernel]]]] = {}
    for signature, positions in by_signature.items():
        for position in positions if len(positions) > 1 else ():
            opened = OpenedKernel(kernels[position][1])
            plain = opened.function.without_attr("global_symbol")
            # One kernel may have a dynamic size where another has a constant.
            key = signature, tvm_ffi.structural_hash(plain, map_free_vars=True), opened.fixed_values
            groups = by_hash.setdefault(key, [])
            group = next((each for each in groups if _are_equal(each[0][1].function, opened.function)), None)
            if group is None:
                groups.append([(position, opened)])
            else:
                group.append((position, opened))
    return sorted((group for groups in by_hash.values() for group in groups if len(group) > 1), key=lambda g: g[0][0])


def _signature(kernel: PrimFunc) -> Hashable:
    """An inexpensive key that is equal for kernels that may share code."""
    return tuple(
        (str(each.ty.dtype), tuple(isinstance(size, tirx.IntImm) for size in each.ty.shape))
        for each in kernel.params
        if tirx.is_buffer_var(each)
    )


def _are_equal(left: PrimFunc, right: PrimFunc) -> bool:
    plain = (each.without_attr("global_symbol") for each in (left, right))
    return bool(tvm_ffi.structural_equal(*plain, map_free_vars=True))


def _shared(members: Sequence[OpenedKernel]) -> tuple[PrimFunc, list[tuple[int, ...]]]:
    """The kernel for all members, and the values of its last parameters for each member."""
    parameters: dict[tuple[int, ...], Var] = {}
    replaced: dict[Node, Node] = {}
    columns = zip(*(member.values for member in members), strict=True)
    for constant, column in zip(members[0].variables, columns, strict=True):
        if len(set(column)) == 1:
            replaced[constant] = tirx.IntImm(_TYPE, column[0])
        else:
            replaced[constant] = parameters.setdefault(column, tirx.Var(f"constant_{len(parameters)}", _TYPE))
    function = members[0].function
    for parameter in function.params:
        if tirx.is_buffer_var(parameter):
            replaced[parameter] = with_shape(parameter, [replaced.get(size, size) for size in parameter.ty.shape])
    body = structural_map(function.body, (tvm.ir.Var, lambda variable: replaced.get(variable, variable)))
    added = list(parameters.values())
    body = _with_early_quotients(body, added)
    every = [*(replaced.get(each, each) for each in function.params), *added]
    constants = list(zip(*parameters, strict=True)) if parameters else [()] * len(members)
    return tirx.PrimFunc(every, body, function.ret_type, function.attrs, function.span), constants


def _with_early_quotients(body: Stmt, parameters: Sequence[Expr]) -> Stmt:
    """Compute divisions of a task's number by parameters once per task; divisions by constants are inexpensive to
    repeat."""

    def task(loop: Stmt) -> Stmt:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        inside = _quotients_first(loop.body, loop.loop_var, set(parameters))
        return tirx.For(
            loop.loop_var,
            loop.min,
            loop.extent,
            loop.kind,
            inside,
            loop.thread_binding,
            loop.annotations,
            loop.step,
            loop.span,
        )

    return structural_map(body, (tirx.For, task))


def _quotients_first(body: Stmt, task: Var, parameters: set[Var]) -> Stmt:
    inner: set[Var] = set()
    structural_walk(
        body, [(tirx.For, lambda loop: inner.add(loop.loop_var)), (tirx.Bind, lambda binding: inner.add(binding.var))]
    )
    names: dict[StructuralKey, Var] = {}
    bindings: list[Stmt] = []

    def division(node: Expr) -> Expr:
        variables = set(variables_in(node))
        if task not in variables or variables.isdisjoint(parameters) or not variables.isdisjoint(inner):
            return node
        key = StructuralKey(node)
        if key not in names:
            names[key] = name_opaque(f"quotient_{len(names)}", node, bindings)
        return names[key]

    replaced = structural_map(body, (DIVISIONS, division))
    return sequence(*bindings, replaced) if bindings else replaced


_MIN_CONSTANT = 2
_LARGE = 4096  # elements; far above the size from which TVM allocates buffers on the heap


class OpenedKernel:
    """A kernel with a variable in place of each constant that may become an argument.

    Attributes:
        function: the kernel, without integer parameters that it does not read; its name and attributes are the given
            kernel's.
        given: the positions of `function`'s parameters among the given kernel's parameters.
        variables: the variables for the constants, in order of occurrence, which is the same for equal kernels.
        values: the values of the constants.
        fixed_values: constants that must be equal for two kernels to share code: sizes of small buffers.
    """

    def __init__(self, kernel: PrimFunc) -> None:
        self._constants: dict[Any, int] = {}
        self._fixed: set[Any] = set()
        self._inner = _bound_in_loops(kernel.body)
        body = structural_map(kernel.body, self._callbacks())
        buffers = {each: self._with_open_shape(each) for each in kernel.params if tirx.is_buffer_var(each)}
        read = set(tirx.analysis.undefined_vars(kernel.body, []))
        self.given = [
            position
            for position, parameter in enumerate(kernel.params)
            if parameter in buffers or parameter in read or _is_size(parameter, buffers)
        ]
        parameters = [buffers.get(each, each) for each in (kernel.params[position] for position in self.given)]
        body = _renamed(body, buffers)
        self.function = tirx.PrimFunc(parameters, body, kernel.ret_type, kernel.attrs, kernel.span)
        found = [each for buffer in buffers.values() for size in buffer.ty.shape for each in variables_in(size)]
        self.variables = [each for each in dict.fromkeys([*found, *variables_in(body)]) if each in self._constants]
        self.values = [self._constants[each] for each in self.variables]
        self.fixed_values = tuple(self._constants[each] for each in self.variables if each in self._fixed)

    def _callbacks(self) -> list[Any]:
        return [
            (tirx.IntImm, self._opened),
            (tirx.For, self._loop),
            (tirx.Ramp, lambda ramp: tirx.Ramp(ramp.base, self._closed(ramp.stride), ramp.lanes)),
            (tirx.Cast, self._cast),
            (tvm.ir.Call, self._call),
            (DIVISIONS, self._division),
            (tirx.AttrStmt, self._mark),
            ((tirx.AllocBuffer, tirx.DeclBuffer), self._buffer),
        ]

    def _opened(self, constant: Expr) -> Expr:
        if int(constant.value) < _MIN_CONSTANT or str(constant.ty) != _TYPE:
            return constant
        opened = tirx.Var(f"constant_{len(self._constants)}", _TYPE)
        self._constants[opened] = int(constant.value)
        return opened

    def _with_open_shape(self, buffer: Buffer) -> Expr:
        shape = [self._opened(size) if isinstance(size, tirx.IntImm) else size for size in buffer.ty.shape]
        return with_shape(buffer, shape)

    def _closed(self, root: Expr) -> Expr:
        """An expression with its original constants."""

        def replace(variable: Var) -> Expr:
            value = self._constants.get(variable)
            return variable if value is None else tirx.IntImm(_TYPE, value)

        if isinstance(root, tirx.IntImm):
            return root
        return replace(root) if isinstance(root, tvm.ir.Var) else structural_map(root, (tvm.ir.Var, replace))

    def _loop(self, loop: Stmt) -> Stmt:
        if loop.kind in (tirx.ForKind.SERIAL, tirx.ForKind.PARALLEL) and not loop.annotations and loop.step is None:
            return loop
        extent, step = self._closed(loop.extent), None if loop.step is None else self._closed(loop.step)
        least = self._closed(loop.min)
        return tirx.For(
            loop.loop_var, least, extent, loop.kind, loop.body, loop.thread_binding, loop.annotations, step, loop.span
        )

    def _cast(self, cast: Expr) -> Expr:
        return tirx.Cast(cast.ty, self._closed(cast.value)) if isinstance(cast.value, tirx.Var) else cast

    def _call(self, call: Call) -> Expr:
        """Restore constant arguments of intrinsics, which may be required to be constants; expressions are kept."""
        if isinstance(call, tvm.ir.TensorLoad) or not any(each in self._constants for each in _variables_of(call)):
            return call
        arguments = [self._closed(each) if isinstance(each, tirx.Var) else each for each in call.args]
        return tvm.ir.Call(call.op, arguments, call.attrs, call.ty_args, call.span, ret_ty=call.ty)

    def _division(self, division: Expr) -> Expr:
        variables = variables_in(division)
        if not any(each in self._constants for each in variables):
            return division
        return self._closed(division) if any(each in self._inner for each in variables) else division

    def _mark(self, mark: Stmt) -> Stmt:
        return tirx.AttrStmt(mark.node, mark.attr_key, self._closed(mark.value), mark.body, mark.span)

    def _buffer(self, statement: Stmt) -> Stmt:
        variables = [each for size in statement.buffer.ty.shape for each in variables_in(size)]
        if self._lies_on_heap(statement.buffer):
            return statement
        self._fixed.update(each for each in variables if each in self._constants)
        return statement

    def _lies_on_heap(self, buffer: Expr) -> bool:
        """True if memory for a buffer is allocated when the kernel runs, as TVM does for large buffers."""
        size = product([constant_int(self._closed(each)) for each in buffer.ty.shape])
        return str(buffer.ty.storage_scope) == "global" and isinstance(size, int) and size > _LARGE


def may_open(kernel: PrimFunc) -> bool:
    """True if a kernel has dynamic sizes (code for known sizes is specialized for them) and contains no blocks."""
    buffers = [each for each in kernel.params if tirx.is_buffer_var(each)]
    if all(isinstance(size, tirx.IntImm) for buffer in buffers for size in buffer.ty.shape):
        return False
    blocks: list[Stmt] = []
    structural_walk(kernel.body, (s_tir.SBlock, blocks.append))
    return holds_statements(kernel) and len(blocks) <= 1 and not any(len(block.alloc_buffers) for block in blocks)


def variables_in(root: Expr) -> list[Var]:
    """Every occurrence of a variable in an expression."""
    found: list[Expr] = []
    structural_walk(root, (tvm.ir.Var, found.append))
    return found


def _variables_of(call: Call) -> list[Expr]:
    return [each for each in call.args if isinstance(each, tirx.Var)]


def _bound_in_loops(body: Stmt) -> set[Expr]:
    """Values that change within a task: variables of loops that are not tasks, and variables bound in such loops."""
    variables: list[Expr] = []

    def inside(loop: Stmt) -> WalkResult:
        if _is_task(loop):
            return WalkResult.ADVANCE
        structural_walk(loop, [(tirx.For, lambda each: variables.append(each.loop_var)), (tirx.Bind, bound)])
        return WalkResult.SKIP

    def bound(binding: Stmt) -> None:
        variables.append(binding.var)

    structural_walk(body, (tirx.For, inside), order="pre")
    return set(variables)


def _is_task(loop: Stmt) -> bool:
    """True if a loop is parallel and its body takes long: the body contains a loop, not just one element or vector."""
    kinds: list[Type] = []
    structural_walk(loop.body, (tirx.For, lambda each: kinds.append(each.kind)))
    return loop.kind == tirx.ForKind.PARALLEL and tirx.ForKind.SERIAL in kinds


def _is_size(parameter: Expr, buffers: Iterable[Buffer]) -> bool:
    """True if a buffer's sizes contain the parameter, possibly only in a formula."""
    return any(parameter in variables_in(size) for buffer in buffers for size in buffer.ty.shape)


def _renamed(body: Stmt, buffers: Mapping[Buffer, Buffer]) -> Stmt:
    def replace(variable: Var) -> Expr:
        return buffers.get(variable, variable)

    return structural_map(body, (tvm.ir.Var, replace))
