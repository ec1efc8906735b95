"""Kernels that differ only in integer constants are compiled once: the shared code takes the constants as arguments,
and each kernel's name is a few instructions that pass them on.

Layers of a network with dynamic sizes are often alike but for their channels. Kernels with static shapes are left
alone: their code is made for just those sizes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import tvm
import tvm_ffi
from tvm import tirx

from compiler.codegen.kernel_constants import DIVISIONS, OpenedKernel, may_open, variables_in
from schedules.codegen.nest import name_opaque, sequence
from schedules.ir.named_sizes import with_shape
from schedules.ir.tir import StructuralKey, structural_map, structural_walk

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, GlobalVar, Node, PrimFunc, Stmt, Var

Kernel: TypeAlias = "tuple[GlobalVar, PrimFunc]"  # its global variable and the PrimFunc
_TYPE = "int64"


@dataclass(frozen=True)
class SharedCall:
    """A call of shared code in place of a kernel: some of the kernel's own arguments, in order, then constants."""

    kernel: str
    given: tuple[int, ...]
    constants: tuple[int, ...]


def share_kernels(kernels: Sequence[Kernel]) -> tuple[list[Kernel], dict[str, SharedCall]]:
    """The kernels to build, and for each name that is none of them which it calls and how."""
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


def _free_name(like: str, taken: set[str]) -> str:
    name = f"{like}_shared"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _alike(kernels: Sequence[Kernel]) -> list[list[tuple[int, OpenedKernel]]]:
    """Groups of two and more kernels, by position, that are equal but for constants that may become arguments."""
    by_signature: dict[Hashable, list[int]] = {}
    for position, (_, kernel) in enumerate(kernels):
        if may_open(kernel):
            by_signature.setdefault(_signature(kernel), []).append(position)
    by_hash: dict[Hashable, list[list[tuple[int, OpenedKernel]]]] = {}
    for positions in by_signature.values():
        for position in positions if len(positions) > 1 else ():
            opened = OpenedKernel(kernels[position][1])
            plain = opened.function.without_attr("global_symbol")
            key = tvm_ffi.structural_hash(plain, map_free_vars=True), opened.fixed_values
            groups = by_hash.setdefault(key, [])
            group = next((each for each in groups if _are_equal(each[0][1].function, opened.function)), None)
            if group is None:
                groups.append([(position, opened)])
            else:
                group.append((position, opened))
    return sorted((group for groups in by_hash.values() for group in groups if len(group) > 1), key=lambda g: g[0][0])


def _signature(kernel: PrimFunc) -> Hashable:
    """A cheap key that is equal for kernels that may share code."""
    return tuple(
        (str(each.ty.dtype), tuple(isinstance(size, tirx.IntImm) for size in each.ty.shape))
        for each in kernel.params
        if tirx.is_buffer_var(each)
    )


def _are_equal(left: PrimFunc, right: PrimFunc) -> bool:
    plain = (each.without_attr("global_symbol") for each in (left, right))
    return bool(tvm_ffi.structural_equal(*plain, map_free_vars=True))


def _shared(members: Sequence[OpenedKernel]) -> tuple[PrimFunc, list[tuple[int, ...]]]:
    """The kernel that serves all members, and the values of its last parameters for each."""
    parameters: dict[tuple[int, ...], Var] = {}
    replaced: dict[Node, Node] = {}
    columns = zip(*(member.values for member in members), strict=True)
    for place, column in zip(members[0].places, columns, strict=True):
        if len(set(column)) == 1:
            replaced[place] = tirx.IntImm(_TYPE, column[0])
        else:
            replaced[place] = parameters.setdefault(column, tirx.Var(f"constant_{len(parameters)}", _TYPE))
    function = members[0].function
    for each in function.params:
        if tirx.is_buffer_var(each):
            replaced[each] = with_shape(each, [replaced.get(size, size) for size in each.ty.shape])
    body = structural_map(function.body, (tvm.ir.Var, lambda variable: replaced.get(variable, variable)))
    added = list(parameters.values())
    body = _with_early_quotients(body, added)
    every = [*(replaced.get(each, each) for each in function.params), *added]
    constants = list(zip(*parameters, strict=True)) if parameters else [()] * len(members)
    return tirx.PrimFunc(every, body, function.ret_type, function.attrs, function.span), constants


def _with_early_quotients(body: Stmt, parameters: Sequence[Expr]) -> Stmt:
    """Divisions of a task's number by parameters are done once in a task; those by constants were cheap to repeat."""

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
        body,
        [(tirx.For, lambda loop: inner.add(loop.loop_var)), (tirx.Bind, lambda binding: inner.add(binding.var))],
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
