"""fold-constants: evaluate expressions that depend only on constants at compile time.

Constants passed to private functions at every call are propagated into these functions.

Loops are imported as recursive functions, with the values that their body captures as parameters. Without
propagation, nothing that depends on captured values is computed at compile time, and weights are not packed.

Calls on constants are evaluated by compiling them with TVM and running them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst, GlobalVar, IRModule
from tvm.tirx import IntImm
from tvm_ffi import StructuralKey

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.evaluators import constant_operands, evaluate_in_numpy, result_bytes
from compiler.passes.rewriting.graph import (
    MAX_ROUNDS,
    Expr,
    Graph,
    Var,
    bindings_of,
    operator_name,
    remove_unused,
    rewritable_functions,
    rewrite_functions,
)
from compiler.passes.rewriting.matching import Array, as_constant, constant_array, dtype_of, rank_of
from compiler.passes.rewriting.substitution import calls_of_functions, replace_leaves, used_as_values
from schedules.instructions.llvm_options import plain_cpu
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Call, Function, PackedFunc, RuntimeModule, RuntimeTensor

# A result may be at most this many times larger than its operands (int8 to float32 is 4), or this many bytes.
GROWTH = 4
ALWAYS_BYTES = 1 << 20
# Above this TVM's unscheduled kernels take seconds.
TVM_BYTES = 64 << 20

# Random, effectful, or about memory and devices; or with a result size known only at run time.
_NEVER = (
    "relax.nn.dropout",
    "relax.multinomial_from_uniform",
    "relax.assert_op",
    "relax.print",
    "relax.null_value",
    "relax.to_vdevice",
    "relax.hint_on_device",
    "relax.wrap_param",
    "relax.size",
    "relax.nonzero",
    "relax.unique",
)
_NEVER_PREFIXES = ("call_", "builtin", "memory", "vm", "ccl", "dist", "grad", "inspect", "make_", "invoke_")
_WEIGHT_ELEMENTS = 1024
_NARROW = ("int8", "uint8")
_NARROW_READERS = ("relax.matmul", "relax.multiply", "relax.permute_dims", "relax.take")
# Readers of weights with one scale per group.
_GROUP_READERS = (*_NARROW_READERS, "relax.reshape")
_HEAVY = ("relax.nn.conv", "relax.nn.attention", "relax.einsum")


@graph_pass("fold-constants", summary="Evaluate expressions that depend only on constants")
def fold_constants(mod: IRModule, context: PipelineContext) -> IRModule:
    """Evaluate reshapes, casts, arithmetic, shapes and kernel calls, unless the module would grow too much.

    In models with quantized activations, 8-bit weights stay 8-bit, since a later phase may compute with them directly;
    `fold-dequantize` folds the rest.
    """
    return fold(mod, keep_narrow=True if _quantizes_activations(mod) else None)


@graph_pass("fold-dequantize", summary="Evaluate expressions that depend only on constants, dequantized weights too")
def fold_dequantize(mod: IRModule, context: PipelineContext) -> IRModule:
    """For weights that no phase uses in integer arithmetic."""
    return fold(mod, keep_narrow=False)


def fold(mod: IRModule, *, keep_narrow: bool | None) -> IRModule:
    """Fold constants; `keep_narrow` exempts dequantizations and casts of 8-bit weights, None only those of weights read
    only by matmuls and row look-ups."""
    for _ in range(MAX_ROUNDS):
        propagated = propagate_constants(rewrite_functions(mod, partial(ConstantFolder, mod, keep_narrow)))
        if propagated is mod:
            break
        # Known shapes make match_casts and their symbols redundant, so that more becomes known.
        mod = remove_unused(relax.transform.CanonicalizeBindings()(propagated))
    return mod


class ConstantFolder(Graph):
    """Replaces each call on constants by its value, in one traversal, since operands come first."""

    def __init__(self, mod: IRModule, keep_narrow: bool | None) -> None:
        super().__init__({}, mod)
        self._mod = mod
        self._keep_narrow = keep_narrow

    def offer(self, value: Expr, variable: Var) -> Expr | None:
        """Fold a call, a field of a known tuple, or a known shape."""
        if isinstance(value, relax.TupleGetItem):
            known = self.definition(value.tuple_value)
            return known.fields[value.index] if isinstance(known, relax.Tuple) else None
        name = operator_name(value)
        if name is None or name in _NEVER or (_widens_weights(name, value) and self._stays_narrow(value, variable)):
            return None
        shape = self._fold_shape(name, value)
        if shape is not None:
            return shape
        if name == "relax.sum" and (sums := self._fold_sum_of_weights(value)) is not None:
            return sums
        if name.removeprefix("relax.").startswith(_NEVER_PREFIXES) and name != "relax.call_tir":
            return None
        return self._fold_call(name, value)

    def _stays_narrow(self, call: Call, variable: Var) -> bool:
        """True if a later phase may read the weights in 8 bits: any weights, or only matrices read by matmuls or by
        rows."""
        if self._keep_narrow is not None:
            return self._keep_narrow
        grouped = operator_name(call) == "relax.dequantize" and int(call.attrs.axis) == 0
        return rank_of(call) == 2 and self.only_read_by(variable, *(_GROUP_READERS if grouped else _NARROW_READERS))

    def _fold_sum_of_weights(self, call: Call) -> Expr | None:
        """Fold sums of weights that themselves stay 8-bit: a zero point's contribution to a matmul."""
        cast = self.call(call.args[0], "relax.astype")
        weights = None if cast is None else constant_array(self, cast.args[0])
        if weights is None or weights.dtype.name not in _NARROW or dtype_of(call) != "int32":
            return None
        axes = None if call.attrs.axis is None else tuple(int(axis) for axis in call.attrs.axis)
        sums = np.sum(weights, axis=axes, dtype=np.int32, keepdims=bool(call.attrs.keepdims))
        return as_constant(np.asarray(sums))

    def _fold_shape(self, name: str, call: Call) -> Expr | None:
        """Fold shape values, including symbolic sizes."""
        if name == "relax.shape_of":
            ty = call.args[0].ty
            shape = ty.shape if isinstance(ty, relax.TensorType) else None
            return shape if isinstance(shape, relax.ShapeExpr) else None
        if name == "relax.tensor_to_shape":
            inner = self.call(call.args[0], "relax.shape_to_tensor")
            if inner is not None:
                return self._leaf_shape(inner.args[0])
            value = self.definition(call.args[0])
            if isinstance(value, GenericConst):
                return relax.ShapeExpr([int(size) for size in value.value.numpy().tolist()])
            return None
        originals = list(call.args)
        arguments = [self._leaf_shape(argument) for argument in originals]
        if all(new is old for new, old in zip(arguments, originals, strict=True)):
            return None
        if not any(isinstance(each, relax.ShapeExpr) for each in arguments):
            return None
        rebuilt = relax.Call(call.op, arguments, call.attrs, call.ty_args, call.span)
        rebuilt = self._builder.normalize(rebuilt)
        return self._fold_call(name, rebuilt) or rebuilt

    def _leaf_shape(self, expr: Expr) -> Expr:
        value = self.definition(expr) if isinstance(expr, relax.Var) else expr
        return value if isinstance(value, relax.ShapeExpr) else expr

    def _fold_call(self, name: str, call: Call) -> Expr | None:
        operands = constant_operands(call)
        size = result_bytes(call.ty)
        if operands is None or size is None:
            return None
        available = sum(array.nbytes for array in operands)
        if size > max(ALWAYS_BYTES, GROWTH * available):
            return None
        value = evaluate_in_numpy(call)
        if value is not None:
            return as_constant(value)
        if available > TVM_BYTES or name.startswith(_HEAVY):
            return None
        return evaluate_with_tvm(call, self._mod)


def _quantizes_activations(mod: IRModule) -> bool:
    """True if any non-constant value is quantized to 8 or 16 bits."""
    return any(
        operator_name(binding.value) in ("relax.quantize", "relax.astype")
        and dtype_of(binding.var) in (*_NARROW, "int16", "uint16")
        and "float" in dtype_of(binding.value.args[0])
        and not isinstance(binding.value.args[0], GenericConst)
        for _, function in rewritable_functions(mod)
        for binding in bindings_of(function.body)
    )


def _widens_weights(name: str, call: Call) -> bool:
    """True if the call casts or dequantizes an 8-bit tensor large enough to be weights."""
    if name not in ("relax.dequantize", "relax.astype") or dtype_of(call.args[0]) not in _NARROW:
        return False
    size = result_bytes(call.args[0].ty)
    return name == "relax.dequantize" or (size is not None and size >= _WEIGHT_ELEMENTS)


_compiled: dict[Hashable, RuntimeModule] = {}


def evaluate_with_tvm(call: Call, mod: IRModule) -> Expr:
    """Return the value of a call on constant tensors: a constant, or a tuple of constants.

    `mod` holds the kernel of a kernel call. Compiling takes some 30 ms, so each distinct call is compiled once.
    """
    parameters: list[Expr] = []
    values: list[Expr] = []

    def parameter(expr: Expr) -> Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([parameter(field) for field in expr.fields])
        if not (isinstance(expr, GenericConst) and isinstance(expr.ty, relax.TensorType)):
            return expr
        parameters.append(relax.Var(f"p{len(parameters)}", expr.ty))
        values.append(expr.value)
        return parameters[-1]

    arguments = [parameter(argument) for argument in call.args]
    result = relax.Var("result", call.ty)
    value = relax.Call(call.op, arguments, call.attrs, call.ty_args, ret_ty=call.ty)
    body = relax.SeqExpr([relax.DataflowBlock([relax.VarBinding(result, value)])], result)
    function = relax.Function(parameters, body, call.ty).with_attr("global_symbol", "main")
    run = _compile(function, call, mod)
    return _as_constants(run(*values))


def _compile(function: Function, call: Call, mod: IRModule) -> PackedFunc:
    functions = {"main": function}
    for argument in call.args:
        if isinstance(argument, GlobalVar):
            functions[argument] = mod[argument]
    key = StructuralKey(IRModule(functions))
    if key not in _compiled:
        module = relax.transform.Normalize()(IRModule(functions))
        executable = relax.build(module, tvm.target.Target(plain_cpu()))
        _compiled[key] = relax.VirtualMachine(executable, tvm.cpu())["main"]
    return _compiled[key]


def _as_constants(value: RuntimeTensor | Sequence[RuntimeTensor]) -> Expr:
    if hasattr(value, "numpy"):
        array: Array = value.numpy()
        return as_constant(array)
    return relax.Tuple([_as_constants(item) for item in value])


_UNKNOWN = object()  # no call seen yet
_VARIES = object()
_Values = dict[tuple[str, int], Any]


def propagate_constants(mod: IRModule) -> IRModule:
    """Remove the parameters that are the same constant at every call, recursive calls included; return `mod` itself if
    there are none.

    Functions used as values or callable from outside keep their parameters.
    """
    functions = {var: f for var, f in mod.functions_items() if isinstance(f, relax.Function)}
    if len(functions) < 2:
        return mod
    private = {var.name_hint: f for var, f in rewritable_functions(mod) if "global_symbol" not in (f.attrs or {})}
    for name in used_as_values(functions):
        private.pop(name, None)
    known = _known(functions, private)
    return _without(mod, functions, known) if known else mod


def _known(functions: dict[GlobalVar, Function], private: dict[str, Function]) -> _Values:
    """Return the constant value of each parameter that has one."""
    positions = {each: (name, index) for name, f in private.items() for index, each in enumerate(f.params)}
    values: _Values = dict.fromkeys(
        (parameter for each, parameter in positions.items() if _has_known_shape(each)), _UNKNOWN
    )
    arguments = [found for f in functions.values() for found in _arguments(f.body, values)]
    changed = True
    while changed:
        changed = False
        for parameter, argument in arguments:
            source = positions.get(argument)
            inherited = _VARIES if source is None else values.get(source, _VARIES)
            met = _meet(values[parameter], argument if isinstance(argument, GenericConst) else inherited)
            changed |= met is not values[parameter]
            values[parameter] = met
    return {parameter: value for parameter, value in values.items() if value is not _UNKNOWN and value is not _VARIES}


def _has_known_shape(parameter: Expr) -> bool:
    """True if removing the parameter removes no definition of a symbolic size."""
    ty = parameter.ty
    shape = ty.shape if isinstance(ty, relax.TensorType) else None
    return isinstance(shape, relax.ShapeExpr) and all(isinstance(size, IntImm) for size in shape.values)


def _arguments(body: Expr, values: _Values) -> Iterator[tuple[tuple[str, int], Expr]]:
    for call in calls_of_functions(body):
        for index, argument in enumerate(call.args):
            if (call.op.name_hint, index) in values:
                yield (call.op.name_hint, index), argument


def _meet(first: Any, second: Any) -> Any:
    """Meet of two arguments in the lattice of constants."""
    if second is _UNKNOWN:
        return first
    if first is _UNKNOWN:
        return second
    if first is _VARIES or second is _VARIES:
        return _VARIES
    return first if first.same_as(second) else _VARIES


def _without(mod: IRModule, functions: dict[GlobalVar, Function], known: _Values) -> IRModule:
    """Return the module with known parameters replaced by their values."""
    dropped: dict[str, set[int]] = {}
    for name, index in known:
        dropped.setdefault(name, set()).add(index)
    renamed = {var: GlobalVar(var.name_hint) for var in functions if var.name_hint in dropped}
    result = {var: function for var, function in mod.functions_items() if var not in functions}
    for var, function in functions.items():
        fixed = dropped.get(var.name_hint, set())
        constants = {each: known[var.name_hint, index] for index, each in enumerate(function.params) if index in fixed}
        replace = partial(_replaced, {**constants, **renamed})
        body = replace_leaves(function.body, replace, partial(_kept, dropped))
        params = [each for index, each in enumerate(function.params) if index not in fixed]
        rebuilt = relax.Function(params, body, function.ret_ty, function.is_pure, function.attrs, function.span)
        if var in renamed:
            set_type(renamed[var], relax.FuncType([each.ty for each in params], function.ret_ty, function.is_pure))
        result[renamed.get(var, var)] = rebuilt
    return relax.transform.Normalize()(IRModule(result, mod.attrs, mod.global_infos))


def _replaced(values: dict[Expr, Expr], leaf: Expr) -> Expr:
    return values.get(leaf, leaf)


def _kept(dropped: dict[str, set[int]], callee: GlobalVar, arguments: list[Expr]) -> list[Expr]:
    gone = dropped.get(callee.name_hint, ())
    return [each for index, each in enumerate(arguments) if index not in gone]
