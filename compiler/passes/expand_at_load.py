"""expand-at-load: constants that are larger than what they come from are made when the module is loaded."""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.artifact.entries import EXPAND_ENTRY
from compiler.passes.context import PipelineContext
from compiler.passes.expansion import Expansion, Expansions
from compiler.passes.half_storage import widening, with_half_storage
from compiler.passes.leaves import leaves
from compiler.passes.matching import Array, array_of, as_constant
from compiler.passes.registry import graph_pass

STORED_NAME = "stored_{}"


@graph_pass(
    "expand-at-load",
    summary="Store transformed weights in their smaller form; a function of the module expands them once",
    required=False,
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
        calls = [(stored.variables(expansions.known[each]), expansions.known[each]) for each in expansions.chosen]
        with builder.dataflow():
            results = [
                builder.emit(builder.call_te(each.kernel, *arguments, primfunc_name_hint=each.name))
                for arguments, each in calls
            ]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output, params=stored.parameters)
    return builder.get()


def _in_use(mod: IRModule, expansions: Expansions) -> list[Any]:
    """The constants of the module that a pass made of smaller ones, or that 16 bits hold."""
    found: dict[Any, None] = {}
    for _, function in mod.functions_items():
        if isinstance(function, relax.Function):
            found.update(dict.fromkeys(leaf for leaf in leaves(function.body) if isinstance(leaf, GenericConst)))
    return [constant for constant in found if _is_smaller(constant, expansions)]


def _is_smaller(constant: Any, expansions: Expansions) -> bool:
    """Whether the constant has a smaller form; notes what 16 bits hold."""
    known = expansions.known.get(constant)
    if known is not None:
        expansions.known[constant] = with_half_storage(known)
        return True
    widened = widening(array_of(constant)) if str(constant.ty.dtype) == "float32" else None
    if widened is not None:
        expansions.known[constant] = widened
    return widened is not None


class _Stored:
    """The parameters of the function, one for each array that is stored."""

    def __init__(self, expansions: Expansions) -> None:
        self._expansions = expansions
        self._by_array: dict[int, Any] = {}
        self.parameters: list[Any] = []

    def variables(self, expansion: Expansion) -> list[Any]:
        return [self._variable(array) for array in expansion.stored]

    def _variable(self, array: Array) -> Any:
        if id(array) not in self._by_array:
            name = STORED_NAME.format(len(self.parameters))
            self._by_array[id(array)] = relax.Var(name, as_constant(array).ty)
            self.parameters.append(self._by_array[id(array)])
            self._expansions.stored[name] = array
        return self._by_array[id(array)]
