"""From a quantization in the graph to the step that computes it, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tvm.ir import GenericConst

from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.operators.registry import matcher, takes_bias
from targets.ethos_u.operators.table import clip_limits, table
from targets.ethos_u.steps import Array, Quantized, Result, Step, Unsupported
from targets.ethos_u.view import View, operator_name, registered_name

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Var


def match(view: View, variable: Var, quantize: Expr, accelerator: Accelerator) -> Step | None:
    """The step that ends in `variable = quantize(...)`; None where that quantizes an input of the integer part.

    Raises:
        Unsupported: with the reason, which `operator_of` belongs to.
    """
    if not _reads_integers(view, quantize.args[0]):
        return None
    if variable not in view.home:
        raise Unsupported("it is in another part of a model with branches or loops")
    result = Result(view.described(variable, quantize), -128, 127, None, accelerator)
    made = table(view, quantize.args[0], result)
    if made is not None:
        return made
    expr, low, high = _limits(view, quantize.args[0], result.output)
    core, bias = _without_bias(view, expr)
    result = replace(result, low=low, high=high)
    call = view.definition(core)
    found = matcher(registered_name(call))
    if found is None:
        raise Unsupported("the accelerator has no such operator")
    return found(view, call, replace(result, bias=bias))


def operator_of(view: View, quantize: Expr) -> str:
    """The name of the operator whose result is quantized."""
    expr = quantize.args[0]
    while True:
        call = view.definition(expr)
        limits = clip_limits(view, call)
        if limits is None:
            break
        expr = limits[0]
    core, _ = _without_bias(view, expr)
    call = view.definition(core)
    name = operator_name(call)
    if name == "relax.call_tir":
        return str(call.args[0].name_hint)
    return "input" if name is None else name.removeprefix("relax.")


def _reads_integers(view: View, expr: Expr) -> bool:
    """True if the operator that is quantized reads a dequantized tensor."""
    waiting, seen = [expr], set()
    while waiting:
        value = view.definition(waiting.pop())
        if value in seen:
            continue
        seen.add(value)
        if operator_name(value) == "relax.dequantize":
            if not isinstance(view.definition(value.args[0]), GenericConst):
                return True
        elif hasattr(value, "args"):
            waiting += list(value.args)
        elif hasattr(value, "fields"):
            waiting += list(value.fields)
    return False


def _limits(view: View, expr: Expr, output: Quantized) -> tuple[Expr, int, int]:
    """Expression that limits are put on, and those limits as integers of the result."""
    low, high = -math.inf, math.inf
    while view.used_once(expr) and (found := clip_limits(view, view.definition(expr))) is not None:
        expr, least, most = found
        low, high = min(max(low, least), most), max(min(high, most), least)
    integers = [float(np.clip(bound / output.scale + output.zero, -1e9, 1e9)) for bound in (low, high)]
    least, most = (int(np.clip(np.rint(each), -128, 127)) for each in integers)
    return expr, least, most


def _without_bias(view: View, expr: Expr) -> tuple[Expr, Array | None]:
    """A product and the constant that is added to it."""
    added = view.call(expr, "relax.add")
    if added is None or not view.used_once(expr):
        return expr, None
    for core, other in ((added.args[0], added.args[1]), (added.args[1], added.args[0])):
        bias = view.number(other)
        call = view.definition(core)
        if bias is not None and takes_bias(registered_name(call)) and view.used_once(core):
            return core, bias
    return expr, None
