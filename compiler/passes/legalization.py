"""Operators whose lowering is ours in place of the engine's."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, topi


def legalize_take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`take`; its mode "fast" promises that indices are inside, of which the engine warns each time."""
    axis, mode = call.attrs.axis, str(call.attrs.mode)
    if mode != "fast" or axis is None:
        flat = None if axis is None else int(axis)
        return builder.call_te(topi.take, call.args[0], call.args[1], flat, mode=mode)
    return builder.call_te(_take, call.args[0], call.args[1], int(axis), primfunc_name_hint="take")


def _take(data: te.Tensor, indices: te.Tensor, axis: int) -> te.Tensor:
    rank = len(indices.shape)
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])

    def element(*place: Any) -> Any:
        index = indices(*place[axis : axis + rank])
        return data(*place[:axis], index, *place[axis + rank :])

    return te.compute(shape, element, name="take")
