"""Sizes of a kernel's tensors that are computed from other sizes get names of their own.

TVM's passes repeat and simplify such an expression, `(h - 1) // 32 + 1`, in every index into the tensor. Kernels of
different layers that differ in these expressions alone become equal, too.
"""

from __future__ import annotations

from schedules.ir.expression import nodes, substitute
from schedules.ir.tir import Buffer, Expr, Node, PrimFunc, StructuralKey, structural_map, tirx

_OPERATIONS = (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)


def name_sizes(function: PrimFunc) -> PrimFunc:
    """The function with a variable for each computed size, which its value comes to from the tensor's shape."""
    sizes = _computed_sizes(function)
    if not sizes:
        return function
    body, shapes = function.body, {each: list(each.ty.shape) for each in _buffers(function)}
    for number, size in enumerate(sizes):
        name = tirx.Var(f"size_{number}", size.ty)
        body = _named(body, size, name)
        for shape in shapes.values():
            shape[:] = [_named(each, size, name) if isinstance(each, _OPERATIONS) else each for each in shape]
    fresh = {each: with_shape(each, shape) for each, shape in shapes.items()}
    parameters = [fresh.get(each, each) for each in function.params]
    return tirx.PrimFunc(parameters, substitute(body, fresh), function.ret_type, function.attrs, function.span)


def _buffers(function: PrimFunc) -> list[Buffer]:
    return [each for each in function.params if tirx.is_buffer_var(each)]


def _computed_sizes(function: PrimFunc) -> list[Expr]:
    """The expressions among the sizes of a function's tensors, those that hold others first."""
    found: dict[StructuralKey, Expr] = {}
    for buffer in _buffers(function):
        for size in buffer.ty.shape:
            if isinstance(size, _OPERATIONS):
                found.setdefault(StructuralKey(size), size)
    return sorted(found.values(), key=lambda size: -len(nodes(size, *_OPERATIONS)))


def _named(root: Node, size: Expr, name: Expr) -> Node:
    """`root` with `name` for `size`, and for its two factors in a product of more, (n * h) * w."""
    key, constants = StructuralKey(size), _constant_operands(size)

    def replace(node: Expr) -> Expr:
        # A key takes far longer than a look at the operands, and the constants of most nodes are others.
        return name if _constant_operands(node) == constants and StructuralKey(node) == key else node

    if not isinstance(size, tirx.Mul):
        return structural_map(root, (type(size), replace))
    first, second = StructuralKey(size.a), StructuralKey(size.b)

    def replace_product(node: Expr) -> Expr:
        if isinstance(node.a, tirx.Mul) and StructuralKey(node.b) == second and StructuralKey(node.a.b) == first:
            return tirx.Mul(node.a.a, name)
        return replace(node)

    return structural_map(root, (tirx.Mul, replace_product))


def _constant_operands(operation: Expr) -> tuple[int | None, int | None]:
    """The values of the two operands of an operation, None where they are not constant."""
    return _constant(operation.a), _constant(operation.b)


def _constant(value: Expr) -> int | None:
    return int(value.value) if isinstance(value, tirx.IntImm) else None


def with_shape(buffer: Buffer, shape: list[Expr]) -> Expr:
    """A buffer like another but for its shape."""
    ty = buffer.ty
    return tirx.decl_buffer(
        shape,
        ty.dtype,
        str(buffer.name),
        strides=ty.strides,
        elem_offset=ty.elem_offset,
        scope=str(ty.storage_scope),
        data_alignment=int(ty.data_alignment),
        offset_factor=int(ty.offset_factor),
        layout=ty.layout,
    )
