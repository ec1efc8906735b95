"""expand-at-load: constants larger than the tensors they are computed from are computed when the module is loaded."""

from __future__ import annotations

from tvm import relax, te, tirx
from tvm.ir import IRModule

from compiler.artifact.entries import EXPAND_ENTRY
from compiler.passes.context import PipelineContext
from compiler.passes.memory.lift_parameters import constants_of
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_pool import ArrayIndex, ConstantPool
from compiler.passes.rewriting.expansion import Expansion, Expansions, widening, with_half_storage
from compiler.passes.rewriting.matching import Array, array_of, as_constant
from schedules.ir.tvm_types import BlockBuilder, Expr, Type, Var

STORED_NAME = "stored_{}"


@graph_pass(
    "expand-at-load",
    summary="Store transformed weights in their smaller form; a function of the module expands them once",
    only="processor",
)
def expand_at_load(mod: IRModule, context: PipelineContext) -> IRModule:
    """Adds `EXPAND_ENTRY(*stored)`, which returns every constant of the module that `context.expansions` knows.

    Winograd's transformed 3x3 filters take 36 numbers for 9: without this, ResNet-18 is 4 times its ONNX file. What 16
    bits hold exactly is stored in them.
    `lift-parameters` makes the constants the last parameters of `main`, in the order in which they are returned.
    """
    expansions: Expansions = context.expansions
    expansions.chosen = _in_use(mod, expansions)
    expansions.stored.clear()
    if not expansions.chosen:
        return mod
    builder = relax.BlockBuilder(mod)
    stored = _Stored(expansions)
    with builder.function(EXPAND_ENTRY):
        chosen = [(each, expansions.known[each]) for each in expansions.chosen]
        arguments = [stored.variables(known) for _, known in chosen]
        with builder.dataflow():
            results = [
                builder.emit(_expanded(builder, known, own, constant.ty))
                for (constant, known), own in zip(chosen, arguments, strict=True)
            ]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output, params=stored.parameters)
    return builder.get()


def _expanded(builder: BlockBuilder, expansion: Expansion, arguments: list[Expr], result: Type) -> Expr:
    """The call of an expansion's kernel, whose result has the type `result`.

    Kernels that differ in free sizes alone are one function.
    """
    if not expansion.free:
        return builder.call_te(expansion.kernel, *arguments, primfunc_name_hint=expansion.name)
    inputs = []
    for number, (argument, free) in enumerate(zip(arguments, expansion.free, strict=True)):
        shape = [int(size) for size in argument.ty.shape]
        sizes = [
            tirx.Var(f"size_{number}_{axis}", "int64") if axis in free else shape[axis] for axis in range(len(shape))
        ]
        inputs.append(te.placeholder(sizes, str(argument.ty.dtype), f"stored_{number}"))
    function = te.create_prim_func([*inputs, expansion.kernel(*inputs)])
    return relax.call_tir(builder.add_func(function, expansion.name), arguments, result)


def _in_use(mod: IRModule, expansions: Expansions) -> list[Expr]:
    """The distinct constants of the module that a pass made of smaller ones, or that 16 bits hold."""
    pool = ConstantPool()
    found = {
        index: each
        for each in constants_of(mod)
        if _is_smaller(each, expansions) and (index := pool.index(each)) is not None
    }
    return list(found.values())


def _is_smaller(constant: Expr, expansions: Expansions) -> bool:
    """True if the constant has a smaller form; notes what 16 bits hold."""
    known = expansions.known.get(constant)
    if known is not None:
        expansions.known[constant] = with_half_storage(known)
        return True
    widened = widening(array_of(constant)) if str(constant.ty.dtype) == "float32" else None
    if widened is not None:
        expansions.known[constant] = widened
    return widened is not None


class _Stored:
    """The parameters of the function, one for each distinct array that is stored."""

    def __init__(self, expansions: Expansions) -> None:
        self._expansions = expansions
        self._index = ArrayIndex()
        self.parameters: list[Var] = []

    def variables(self, expansion: Expansion) -> list[Var]:
        return [self._variable(array) for array in expansion.stored]

    def _variable(self, array: Array) -> Var:
        index = self._index.index(array)
        if index == len(self.parameters):
            name = STORED_NAME.format(index)
            self.parameters.append(relax.Var(name, as_constant(array).ty))
            self._expansions.stored[name] = array
        return self.parameters[index]
