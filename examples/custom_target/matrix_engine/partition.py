"""The partitioner: claims the matmuls that the engine supports, and reports why it refuses the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.dpl import is_const, is_op, rewrite_call, wildcard

from matrix_engine import commands
from matrix_engine.simulator import FUNCTION


def claim_products(mod: tvm.IRModule, context: Any) -> tvm.IRModule:
    """A graph pass: replace matmuls with constant weights, with an optional bias and ReLU, by calls to the engine."""
    claimed: list[str] = []
    function = mod["main"]
    # The longest pattern first: a matmul claimed with its ReLU is not claimed again without it.
    for bias, relu in ((True, True), (True, False), (False, True), (False, False)):
        pattern, rewrite = _form(bias, relu, claimed)
        function = rewrite_call(pattern, rewrite, function)
    mod = tvm.IRModule({**mod.functions, mod.get_global_var("main"): function}, attrs=mod.attrs)
    context.report.partition = {"claimed": claimed, "refused": _refused(function)}
    return relax.transform.DeadCodeElimination(["main"])(mod)


def _form(bias: bool, relu: bool, claimed: list[str]) -> tuple[Any, Callable[[Any, Any], Any]]:
    x, weight, added = wildcard(), is_const(), is_const()
    pattern = is_op("relax.matmul")(x, weight)
    if bias:
        pattern = is_op("relax.add")(pattern, added)
    if relu:
        pattern = is_op("relax.nn.relu")(pattern)

    def rewrite(call: Any, found: Any) -> Any:
        shape = _shape(call)
        if _problem(found[x], found[weight]) or (bias and not _is_row(found[added], shape[-1])):
            return call
        rows, columns = shape
        depth = _shape(found[weight])[0]
        program = relax.const(commands.product(rows, depth, columns, bias=bias, relu=relu))
        row = found[added].value.numpy().reshape(columns) if bias else np.zeros(columns, np.float32)
        claimed.append(f"matmul {rows}x{depth}x{columns}" + " + bias" * bias + " + relu" * relu)
        arguments = [program, found[x], found[weight], relax.const(row)]
        return relax.op.call_dps_packed(FUNCTION, arguments, out_ty=relax.TensorType((rows, columns), "float32"))

    return pattern, rewrite


def _refused(function: Any) -> list[dict[str, str]]:
    """Return the matmuls that stay on the CPU, each with the reason."""
    found: list[dict[str, str]] = []

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.matmul":
            reason = _problem(*node.args) or "its bias is not a row of numbers"
            found.append({"operator": "matmul", "reason": reason})

    relax.analysis.post_order_visit(function, visit)
    return found


def _problem(x: Any, weight: Any) -> str | None:
    """Return the reason why the engine does not support this matmul; None if it does."""
    if not isinstance(weight, tvm.ir.GenericConst):
        return "its second operand is not a constant"
    if {str(x.ty.dtype), str(weight.ty.dtype)} != {"float32"}:
        return f"its element type is {x.ty.dtype}, and the engine multiplies float32"
    if len(_shape(x)) != 2 or len(_shape(weight)) != 2:
        return "its operands are not matrices"
    if any(size < 0 for size in _shape(x)):
        return "the number of its rows is open, and a program is for one size"
    needed = commands.length(*_shape(x), _shape(weight)[1])
    if needed > commands.LONGEST_PROGRAM:
        return f"it takes {needed} commands, and the engine's queue holds {commands.LONGEST_PROGRAM}"
    return None


def _is_row(value: Any, columns: int) -> bool:
    return _shape(value) in ((columns,), (1, columns)) and str(value.ty.dtype) == "float32"


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape, with -1 for dynamic dimensions."""
    return tuple(int(size.value) if isinstance(size, tvm.tirx.IntImm) else -1 for size in value.ty.shape)
