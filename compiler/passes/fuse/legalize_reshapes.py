"""Reshapes at dynamic sizes.

TVM computes a reshape's indices by dividing; where a size is dynamic, it then takes the kernel for one that cannot be
fused. Those that only add or drop dimensions of 1, as squeezes and unsqueezes do, have their indices in their places
and are fused with what is around them, as at fixed sizes. Of the others, which TVM often cannot prove to keep the order
of elements, the kernel says that it is a reshape (`RESHAPE`), for `lower-reshapes` to make a view of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax, te, topi
from tvm.relax.transform.legalize_ops.manipulate import _reshape as engine_reshape
from tvm.tirx import IntImm, const

from compiler.passes.rewriting.matching import is_one, same_shape, shape_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Index

RESHAPE = "tensorwright.reshape"  # attribute of a kernel that is a reshape of its first parameter and nothing else


def legalize_reshape(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`reshape`: each axis of the result that is not 1 reads its own axis of the operand."""
    source, target = shape_of(call.args[0]), shape_of(call)
    if source is None or target is None or all(isinstance(size, IntImm) for size in target):
        return engine_reshape(topi.reshape, "reshape")(builder, call)
    if not same_shape(_without_ones(source), _without_ones(target)):
        return builder.call_te(
            topi.reshape, call.args[0], target, primfunc_name_hint="reshape", primfunc_attrs={RESHAPE: True}
        )

    def reshaped(data: te.Tensor) -> te.Tensor:
        def element(*place: Expr) -> Expr:
            wide = iter(index for index, size in zip(place, target, strict=True) if not is_one(size))
            return data(*(const(0, "int64") if is_one(size) else next(wide) for size in source))

        return te.compute(target, element, name="reshape")

    return builder.call_te(reshaped, call.args[0], primfunc_name_hint="reshape")


def _without_ones(shape: list[Index]) -> list[Index]:
    return [size for size in shape if not is_one(size)]


LEGALIZATIONS = {"relax.reshape": legalize_reshape}
