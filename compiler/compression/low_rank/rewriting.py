"""Layers replaced by the layers of their factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm import relax
from tvm.ir import IRModule

from compiler.compression.low_rank.decomposition import Factors
from compiler.compression.quantization.edit import Emit, edit_main
from compiler.compression.quantization.layers import Layer
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import Array, as_constant


def factored(mod: IRModule, layers: Sequence[Layer], factors: Mapping[str, Factors]) -> IRModule:
    """`mod` with the layers that are in `factors`, by name, in their factored form."""
    changed = {layer.variable: factors[layer.name] for layer in layers if layer.name in factors}

    def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
        return chain(call, changed[variable].weights, emit) if variable in changed else None

    return edit_main(mod, edit)


def chain(call: Call, weights: Sequence[Array], emit: Emit) -> Expr:
    """The call's data through layers of these weights: the one with the kernel has the call's strides and padding."""
    value: Expr = call.args[0]
    is_matmul = call.op.name == "relax.matmul"
    whole = 0 if is_matmul else _with_kernel(call, weights)
    for index, weight in enumerate(weights):
        if is_matmul:
            result = relax.op.matmul(value, as_constant(weight))
        else:
            result = _convolution(call, value, weight, own=index == whole)
        value = result if index == len(weights) - 1 else emit(result)
    return value


def _with_kernel(call: Call, weights: Sequence[Array]) -> int:
    kernel = tuple(int(size) for size in call.args[1].ty.shape)[2:]
    return next(index for index, weight in enumerate(weights) if weight.shape[2:] == kernel)


def _convolution(call: Call, data: Expr, weight: Array, *, own: bool) -> Expr:
    """With the attributes of `call` where they are its `own`, plain otherwise."""
    operator = getattr(relax.op.nn, call.op.name.rsplit(".", 1)[-1])
    attributes = call.attrs
    layouts = {"data_layout": str(attributes.data_layout), "kernel_layout": str(attributes.kernel_layout)}
    if not own:
        return operator(data, as_constant(weight), **layouts)
    places = {name: [int(each) for each in getattr(attributes, name)] for name in ("strides", "padding", "dilation")}
    return operator(data, as_constant(weight), **places, **layouts)
