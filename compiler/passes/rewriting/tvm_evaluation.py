"""Evaluating a call on constants with TVM: compile it, run it here."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import tvm
from tvm import relax
from tvm.ir import GenericConst, GlobalVar, IRModule
from tvm_ffi import StructuralKey

from compiler.passes.rewriting.matching import Array, as_constant
from schedules.instructions.llvm_options import plain_cpu

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call, Expr, Function, PackedFunc, RuntimeModule, RuntimeTensor

_compiled: dict[Hashable, RuntimeModule] = {}


def evaluate_with_engine(call: Call, mod: IRModule) -> Expr:
    """The value of a call whose tensor operands are constants: a constant, or a tuple of constants.

    `mod` holds the kernel when the call is of one. Compiling takes some 30 ms, so each call is compiled once.
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
