"""The partition pass: quantized parts of a model become calls of the accelerator, with a report of claims and refusals.

Vela supports TOSA's ARGMAX for up to 127 channels only. Here it is composed for any axis: the difference to the extreme
value is 0 at the extremes; the maximum of their negated positions, as bytes, is the first of them. With more than 128
positions this is done first for their high and then for their low part. All of it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from schedules.ir.tvm_types import Binding, BindingBlock, Call, Expr, Function, Var
from targets.errors import TargetError, ToolchainMissing
from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.kernels import Kernel
from targets.ethos_u.layout import channels_first, channels_last
from targets.ethos_u.operators.registry import matcher, takes_bias
from targets.ethos_u.operators.table import clip_limits, table
from targets.ethos_u.report import partition_report
from targets.ethos_u.runtime import FUNCTION
from targets.ethos_u.segments import Port, Schedule, Segment, one_segment, schedule, turned_early
from targets.ethos_u.settings import NetworkSettings, VelaOptions, in_forms
from targets.ethos_u.steps import Array, Quantized, Result, Step, Unsupported
from targets.ethos_u.vela import Compiled, compile_graph, require
from targets.ethos_u.verification import REASON, agrees, first_wrong
from targets.ethos_u.view import View, operator_name, registered_name
from targets.splitting import slices_for_splits

_PRODUCTS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d", "relax.nn.conv2d_transpose", "relax.matmul")


@dataclass
class Found:
    """Parts of a function that the accelerator can run.

    Attributes:
        steps: steps by the variable that each computes.
        refused: (operator, reason) of the others.
    """

    steps: dict[Var, Step] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def write_in(self, forms: Mapping[str, str]) -> None:
        """Apply the forms chosen for steps. Raises TargetError if there is no such step or form."""
        self.steps = dict(zip(self.steps, in_forms(list(self.steps.values()), forms), strict=True))


def find(view: View, accelerator: Accelerator) -> Found:
    """Try to match every quantization."""
    partition = Found()
    for variable, value in view.bindings:
        if operator_name(value) == "relax.quantize":
            try:
                step = match(view, variable, value, accelerator)
                if step is not None:
                    one_segment([step])
            except (Unsupported, ValueError) as refusal:  # ValueError: a scale that no RESCALE has
                partition.refused.append((operator_of(view, value), str(refusal)))
                continue
            if step is not None:
                partition.steps[variable] = step
        elif operator_name(value) in _PRODUCTS and "float" in str(value.ty.dtype):
            reason = _unquantized(view, value)
            if reason is not None:
                partition.refused.append((str(value.op.name).removeprefix("relax."), reason))
    return partition


def _unquantized(view: View, call: Call) -> str | None:
    """Reason why no quantization will claim a matmul."""
    if all(view.call(each, "relax.dequantize") is None for each in call.args[:2]):
        return "it computes in float: quantize the model for this target"
    return None


def prepared(mod: tvm.IRModule) -> tvm.IRModule:
    """The graph in the form that `find` needs: each operator has one result, of bytes."""
    return bytes_for_positions(slices_for_splits(mod))


def claim(mod: tvm.IRModule, context: Any, accelerator: Accelerator) -> tvm.IRModule:
    """A graph pass: replace everything that `accelerator` can run by calls of it."""
    require()
    mod = prepared(mod)
    view = View(mod)
    partition = find(view, accelerator)
    settings = NetworkSettings.of(context.settings)
    partition.write_in(settings.forms)
    plan, compiled = partitioned(view, partition, view.results, accelerator, settings.vela)
    steps = {step.output.variable: step for part in plan.parts.values() for step in part.steps}
    remaining = [value for variable, value in view.bindings if variable in plan.levels]
    parts, programs = list(plan.parts.values()), list(compiled.values())
    report = partition_report(view, steps, partition.refused, remaining, parts, programs, accelerator, settings.vela)
    if context.settings:
        report["settings"], report["measure"] = dict(context.settings), accelerator.measure_name
        report["summary"].append(f"{len(context.settings)} settings of a tuning record, by {accelerator.measure_name}")
    context.report.partition = report
    if not compiled:
        return mod
    rewritten = _Rewriter(mod, plan, compiled).rewrite(mod["main"])
    mod = tvm.IRModule({**mod.functions, mod.get_global_var("main"): rewritten}, attrs=mod.attrs)
    return relax.transform.DeadCodeElimination(["main"])(relax.transform.Normalize()(mod))


def partitioned(
    view: View, found: Found, results: Expr, accelerator: Accelerator, options: VelaOptions
) -> tuple[Schedule, dict[int, Compiled]]:
    """Segments and their programs. A step that only Vela refuses stays on the processor, with Vela's reason; so does
    the first step from which on a segment's program, in either form, does not compute the segment's graph. Raises
    TargetError if Vela refuses a segment whose steps it accepts one by one."""
    right: dict[bytes, tuple[Segment, Compiled]] = {}
    while True:
        plan = schedule(view, found.steps, results)
        compiled = {}
        old_count = len(found.steps)
        for level, part in plan.parts.items():
            if part.tosa in right:
                plan.parts[level], compiled[level] = right[part.tosa]
                continue
            try:
                compiled[level] = compile_graph(part.tosa, accelerator, options)
            except ToolchainMissing:
                raise
            except TargetError:
                left = len(found.steps)
                for step in part.steps:
                    _refuse_alone(step, found, accelerator)
                if len(found.steps) == left:
                    raise
                continue
            if (agreed := _agreed(part, compiled[level], accelerator, options)) is not None:
                right[part.tosa] = plan.parts[level], compiled[level] = agreed
            else:
                step = first_wrong(part, accelerator, options)
                del found.steps[step.output.variable]
                found.refused.append((step.operator, REASON))
        if len(found.steps) == old_count:
            return plan, compiled


def _agreed(
    part: Segment, compiled: Compiled, accelerator: Accelerator, options: VelaOptions
) -> tuple[Segment, Compiled] | None:
    """A segment, or its alternative form, whose program computes its graph; None if neither does."""
    if accelerator.is_u85 or agrees(part, compiled.program):
        return part, compiled
    turned = turned_early(part)
    if turned.tosa == part.tosa:
        return None
    try:
        again = compile_graph(turned.tosa, accelerator, options)
    except ToolchainMissing:
        raise
    except TargetError:  # Vela only supports the first form
        return None
    return (turned, again) if agrees(turned, again.program) else None


def _refuse_alone(step: Step, found: Found, accelerator: Accelerator) -> None:
    try:
        compile_graph(one_segment([step]).tosa, accelerator)
    except TargetError as error:
        del found.steps[step.output.variable]
        found.refused.append((step.operator, error.message))


class _Rewriter:
    """Replaces each segment by one call, with the processor's part around the calls, level by level."""

    def __init__(self, mod: tvm.IRModule, plan: Schedule, compiled: Mapping[int, Compiled]) -> None:
        self._builder = relax.BlockBuilder(mod)
        self._plan, self._compiled = plan, compiled
        self._bindings: list[Binding] = []
        self._is_dataflow = False
        self._names = 0

    def rewrite(self, function: Function) -> Function:
        """The function with calls of the accelerator."""
        blocks = []
        for block in function.body.blocks:
            if not isinstance(block, relax.DataflowBlock) or not self._holds_segments(block):
                blocks.append(block)
                continue
            self._bindings, self._is_dataflow = [], True
            levels = self._plan.levels
            steps = sorted((each for each in block.bindings if each.var in levels), key=lambda each: levels[each.var])
            for level in range(max([*levels.values(), *self._plan.parts]) + 1):
                self._bindings += [each for each in steps if levels[each.var] == level]
                if level in self._plan.parts:
                    self._call(self._plan.parts[level], self._compiled[level])
            blocks.append(relax.DataflowBlock(self._bindings, block.span))
        body = relax.SeqExpr(blocks, function.body.body, function.body.span)
        return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)

    def _holds_segments(self, block: BindingBlock) -> bool:
        made = {step.output.variable for part in self._plan.parts.values() for step in part.steps}
        return any(binding.var in made for binding in block.bindings)

    def _call(self, part: Segment, compiled: Compiled) -> None:
        program = relax.const(np.array(compiled.program.to_bytes()))
        arguments = [program, *(self._taken(port) for port in part.inputs)]
        types = [relax.TensorType(port.shape, "int8") for port in part.outputs]
        result = self._emit(relax.op.call_dps_packed(FUNCTION, arguments, out_ty=types))
        for index, port in enumerate(part.outputs):
            whole = result if len(types) == 1 else self._emit(relax.TupleGetItem(result, index))
            self._give(port, whole)

    def _taken(self, port: Port) -> Expr:
        value = port.tensor.variable
        if port.tensor.unsigned:
            wide = self._emit(relax.op.astype(value, "int32"))
            value = self._emit(relax.op.astype(self._emit(relax.op.subtract(wide, relax.const(128, "int32"))), "int8"))
        if port.last:
            value = self._emit(relax.op.permute_dims(value, channels_last(len(port.tensor.shape))))
        return value if port.arrangement is None else port.arrangement.apply(value, port.tensor.zero, self._emit)

    def _give(self, port: Port, value: Expr) -> None:
        """Bind the model's own variable."""
        expr = relax.op.permute_dims(value, channels_first(len(port.shape))) if port.last else value
        if port.tensor.unsigned:
            wide = self._emit(relax.op.astype(self._emit(expr), "int32"))
            expr = relax.op.astype(self._emit(relax.op.add(wide, relax.const(128, "int32"))), "uint8")
        self._bindings.append(relax.VarBinding(port.tensor.variable, self._builder.normalize(expr)))

    def _emit(self, expr: Expr) -> Expr:
        value = self._builder.normalize(expr)
        if isinstance(value, relax.Var):
            return value
        self._names += 1
        kind = relax.DataflowVar if self._is_dataflow else relax.Var
        variable = kind(f"npu{self._names}", value.ty)
        self._bindings.append(relax.VarBinding(variable, value))
        return variable


def match(view: View, variable: Var, quantize: Expr, accelerator: Accelerator) -> Step | None:
    """The step that ends in `variable = quantize(...)`; None if that quantizes an input of the integer part. Raises
    Unsupported if with the reason, for the operator given by `operator_of`."""
    if not _reads_integers(view, quantize.args[0]):
        return None
    if variable not in view.home:
        raise Unsupported("it is in another part of a model with branches or loops")
    result = Result(view.described(variable, quantize), -128, 127, None, accelerator)
    lookup = table(view, quantize.args[0], result)
    if lookup is not None:
        return lookup
    expr, low, high = _limits(view, quantize.args[0], result.output)
    core, bias = _without_bias(view, expr)
    result = replace(result, low=low, high=high)
    call = view.definition(core)
    rule = matcher(registered_name(call))
    if rule is None:
        raise Unsupported("the accelerator has no such operator")
    return rule(view, call, replace(result, bias=bias))


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
    """True if the quantized operator reads a dequantized tensor."""
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
    """The expression inside a clamp, and the clamp's limits as integers of the result."""
    low, high = -math.inf, math.inf
    while view.used_once(expr) and (found := clip_limits(view, view.definition(expr))) is not None:
        expr, least, most = found
        low, high = min(max(low, least), most), max(min(high, most), least)
    integers = [float(np.clip(bound / output.scale + output.zero, -1e9, 1e9)) for bound in (low, high)]
    least, most = (int(np.clip(np.rint(each), -128, 127)) for each in integers)
    return expr, least, most


def _without_bias(view: View, expr: Expr) -> tuple[Expr, Array | None]:
    """A matmul and the constant added to it."""
    added = view.call(expr, "relax.add")
    if added is None or not view.used_once(expr):
        return expr, None
    for core, other in ((added.args[0], added.args[1]), (added.args[1], added.args[0])):
        bias = view.number(other)
        call = view.definition(core)
        if bias is not None and takes_bias(registered_name(call)) and view.used_once(core):
            return core, bias
    return expr, None


_PART = 128  # positions that a byte can distinguish
_MAX_POSITIONS = (_PART - 1) * _PART
_MAX_AXES = 4
_BEYOND = 256.0  # one step away from the extreme value: less than any position


def bytes_for_positions(mod: tvm.IRModule) -> tvm.IRModule:
    """Rewrite argmax and argmin of quantized tensors as quantized operators and the negation of their result."""
    variable = mod.get_global_var("main")
    rewriter = _ArgExtremumRewriter(mod, View(mod))
    return tvm.IRModule({**mod.functions, variable: rewriter.visit_expr(mod["main"])}, attrs=mod.attrs)


@dataclass(frozen=True)
class _ArgExtremum:
    """Reduction to an index: tensor, axis, minimum or maximum, and whether the last of equal ones wins."""

    operand: Expr
    data: Quantized
    axis: int
    smallest: bool
    last: bool

    @property
    def size(self) -> int:
        return self.data.shape[self.axis]


def _arg_extremum(view: View, call: Call) -> _ArgExtremum:
    """The reduction that a call computes. Raises Unsupported."""
    name = registered_name(call)
    if name in ("relax.argmax", "relax.argmin") and call.attrs.axis is not None:
        data = view.quantized(call.args[0])
        axis = int(call.attrs.axis) % len(data.shape)
        return _ArgExtremum(call.args[0], data, axis, name == "relax.argmin", last=False)
    if name != "kernel.arg_extremum":
        raise Unsupported("it does not return an index")
    operand = call.args[1].fields[0]
    data, kernel = view.quantized(operand), Kernel(view, call)
    numbers = np.random.default_rng(0).integers(-9, 10, data.shape).astype(np.float32)  # some are equal
    computed = kernel(numbers)
    for axis, size in enumerate(data.shape):
        for smallest in (False, True):
            for last in (False, True):
                turned = np.flip(-numbers if smallest else numbers, axis) if last else -numbers if smallest else numbers
                index = turned.argmax(axis)
                index = size - 1 - index if last else index
                if index.size == computed.size and np.array_equal(index.ravel(), computed.ravel()):
                    return _ArgExtremum(operand, data, axis, smallest, last)
    raise Unsupported("it returns the index of neither the maximum nor the minimum")


@mutator
class _ArgExtremumRewriter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, view: View) -> None:
        super().__init__(mod)
        self._view = view

    def visit_call_(self, op: Expr) -> Expr:
        call = super().visit_call_(op)
        try:
            extremum = _arg_extremum(self._view, op)
        except Unsupported:
            return call
        if len(extremum.data.shape) > _MAX_AXES or not 1 < extremum.size <= _MAX_POSITIONS:
            return call
        position = self._position(self._differences(extremum), extremum)
        shaped = self._emit(relax.op.reshape(position, op.ty.shape))
        return self._emit(relax.op.astype(shaped, str(op.ty.dtype)))

    def _differences(self, extremum: _ArgExtremum) -> Expr:
        """0 for the extreme values, negative for the rest."""
        x = self.visit_expr(extremum.operand)
        call = self._view.call(extremum.operand, "relax.dequantize")
        assert call is not None
        reduce = relax.op.min if extremum.smallest else relax.op.max
        dtype = "uint8" if extremum.data.unsigned else "int8"
        furthest = self._rounded(reduce(x, extremum.axis, keepdims=True), call.args[1], call.args[2], dtype)[0]
        pair = (furthest, x) if extremum.smallest else (x, furthest)
        return self._rounded(relax.op.subtract(*pair), _number(extremum.data.scale), _byte(127))[0]

    def _position(self, far: Expr, extremum: _ArgExtremum) -> Expr:
        """int32 positions of the first zeros of `far`, or of the last."""
        axis, size, rank = extremum.axis, extremum.size, len(extremum.data.shape)
        order = np.arange(size)[::-1] if extremum.last else np.arange(size)
        positions = order.reshape([size if each == axis else 1 for each in range(rank)])
        if size <= _PART:
            negated = self._first(far, extremum.data.scale, positions, axis)[2]
        else:
            candidates, part, high = self._first(far, extremum.data.scale, positions // _PART, axis)
            behind = self._rounded(relax.op.subtract(candidates, part), _number(1.0), _byte(127))[0]
            low = self._first(behind, 1.0, positions % _PART, axis)[2]
            negated = self._emit(relax.op.add(self._emit(relax.op.multiply(high, relax.const(_PART, "int32"))), low))
        if extremum.last:
            return self._emit(relax.op.add(negated, relax.const(size - 1, "int32")))
        return self._emit(relax.op.negative(negated))

    def _first(self, far: Expr, step: float, positions: Array, axis: int) -> tuple[Expr, Expr, Expr]:
        """Negated positions where `far` is 0 and less than any elsewhere; their maximum, and that as int32."""
        flags = self._rounded(relax.op.multiply(far, _number(_BEYOND / step)), _number(1.0), _byte(0))[0]
        negated = relax.const(-positions.astype(np.float32))
        candidates = self._rounded(relax.op.minimum(flags, negated), _number(1.0), _byte(0))[0]
        largest = relax.op.max(candidates, axis, keepdims=True)
        first, integers = self._rounded(largest, _number(1.0), _byte(0))
        return candidates, first, self._emit(relax.op.astype(integers, "int32"))

    def _rounded(self, expr: Expr, scale: Expr, zero: Expr, dtype: str = "int8") -> tuple[Expr, Expr]:
        """dequantize(quantize(expr)), and the intermediate integers."""
        integers = self._emit(relax.op.quantize(self._emit(expr), scale, zero, -1, dtype))
        return self._emit(relax.op.dequantize(integers, scale, zero, -1, "float32")), integers

    def _emit(self, expr: Expr) -> Expr:
        return self.builder_.emit(expr)


def _number(value: float) -> Expr:
    return relax.const(value, "float32")


def _byte(value: int) -> Expr:
    return relax.const(value, "int8")
