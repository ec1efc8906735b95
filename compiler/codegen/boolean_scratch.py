"""Scratch buffers of booleans hold bytes.

TVM's pass StorageRewrite makes a buffer that a kernel allocates one of vectors where every access is a vector of the
same length, and one of booleans a buffer of int8 vectors without a comparison where it is loaded. Code generation then
stops at vectors of int8 where conditions are wanted, or inverts them as integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from schedules.ir.inline import call_name
from schedules.ir.stages import dtype_of
from schedules.ir.tir import s_tir, structural_map, structural_walk, tirx, tvm

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Node, Stmt, Var


def bytes_for_booleans(body: Stmt) -> Stmt:
    """Replace allocated boolean buffers of a statement by int8: stores write 1 or 0, loads compare with 0.

    Buffers whose address is taken, or that others alias, stay as they are.
    """
    bytes_of = {buffer: _of_bytes(buffer) for buffer in _allocated(body) if dtype_of(buffer) == "bool"}
    for buffer in _aliased(body):
        bytes_of.pop(buffer, None)
    if not bytes_of:
        return body
    made = set(bytes_of.values())

    def renamed(variable: Var) -> Expr:
        return bytes_of.get(variable, variable)

    def load(node: Expr) -> Expr:
        if node.source not in made:
            return node
        value = tirx.BufferLoad(node.source, list(node.indices))
        return tirx.NE(value, _constant(0, value))

    def store(node: Stmt) -> Stmt:
        if node.buffer not in made:
            return node
        return tirx.BufferStore(node.buffer, _number(node.value), list(node.indices))

    return structural_map(body, [(tvm.ir.Var, renamed), (tvm.ir.TensorLoad, load), (tirx.BufferStore, store)])


def _allocated(body: Stmt) -> list[Expr]:
    found: list[Stmt] = []
    structural_walk(
        body,
        [
            (s_tir.SBlock, lambda block: found.extend(block.alloc_buffers)),
            (tirx.AllocBuffer, lambda allocation: found.append(allocation.buffer)),
        ],
    )
    return found


def _aliased(body: Stmt) -> list[Expr]:
    """Buffers whose address is taken, or that others match; calls take loads as values."""
    found: list[Node] = []

    def call(node: Expr) -> None:
        by_address = call_name(node) == "tirx.address_of"
        found.extend(arg.source if by_address and isinstance(arg, tvm.ir.TensorLoad) else arg for arg in node.args)

    def block(node: Stmt) -> None:
        found.extend(matched.source.source for matched in node.match_buffers)

    structural_walk(body, [(tvm.ir.Call, call), (s_tir.SBlock, block)])
    return [each for each in found if isinstance(each, tvm.ir.Var)]


def _of_bytes(buffer: Expr) -> Expr:
    kind = buffer.ty
    return tirx.decl_buffer(
        list(kind.shape),
        "int8",
        str(buffer.name),
        strides=list(kind.strides),
        elem_offset=kind.elem_offset,
        scope=str(kind.storage_scope),
        data_alignment=int(kind.data_alignment),
        offset_factor=int(kind.offset_factor),
        layout=kind.layout,
    )


def _number(condition: Expr) -> Expr:
    return tirx.Cast("int8" + str(condition.ty).removeprefix("bool"), condition)


def _constant(number: int, like: Expr) -> Expr:
    scalar, _, lanes = str(like.ty).partition("x")
    constant = tirx.IntImm(scalar, number)
    return tirx.Broadcast(constant, int(lanes)) if lanes else constant
