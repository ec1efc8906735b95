"""expand-at-load: constants that are larger than what they come from are made when the module is loaded.

Two ways: what a pass says it made of something smaller (Winograd's filters), and arrays of few distinct values, which
are stored as palettes (weights that were shared, masks, tables of steps). The second also serves what the first stores.
"""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.artifact.entries import EXPAND_ENTRY
from compiler.passes.context import PipelineContext
from compiler.passes.expansion import Expansion, Expansions
from compiler.passes.leaves import leaves
from compiler.passes.matching import Array, array_of, as_constant
from compiler.passes.palette import Palette, find_palette
from compiler.passes.registry import graph_pass

STORED_NAME = "stored_{}"


@graph_pass(
    "expand-at-load",
    summary="Store transformed weights and arrays of few values in a smaller form, which loading expands",
    required=False,
)
def expand_at_load(mod: IRModule, context: PipelineContext) -> IRModule:
    """Adds `EXPAND_ENTRY(*stored)`, which returns every constant of the module that has a smaller form.

    Winograd's transformed 3x3 filters take 36 numbers for 9: without this, ResNet-18 is 4 times its ONNX file.
    `lift-parameters` makes the constants the last parameters of `main`, in the order in which they are returned.
    """
    expansions: Expansions = context.expansions
    expansions.chosen = _in_use(mod, expansions)
    expansions.stored.clear()
    if not expansions.chosen:
        return mod
    builder = relax.BlockBuilder(mod)
    stored = _Stored(expansions)
    known = [expansions.known.get(each) for each in expansions.chosen]
    for constant, each in zip(expansions.chosen, known, strict=True):
        for array in each.stored if each is not None else (array_of(constant),):
            stored.add(array)
    with builder.function(EXPAND_ENTRY):
        with builder.dataflow():
            results = [
                _expanded(builder, stored, constant, each)
                for constant, each in zip(expansions.chosen, known, strict=True)
            ]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output, params=stored.parameters)
    return builder.get()


def _expanded(builder: Any, stored: _Stored, constant: Any, expansion: Expansion | None) -> Any:
    if expansion is None:
        return stored.value(builder, array_of(constant))
    arguments = [stored.value(builder, array) for array in expansion.stored]
    return builder.emit(builder.call_te(expansion.kernel, *arguments, primfunc_name_hint=expansion.name))


def _in_use(mod: IRModule, expansions: Expansions) -> list[Any]:
    """The constants of the module that a pass made of smaller ones, or that have a palette."""
    found: dict[Any, None] = {}
    for _, function in mod.functions_items():
        if isinstance(function, relax.Function):
            found.update(dict.fromkeys(leaf for leaf in leaves(function.body) if isinstance(leaf, GenericConst)))
    return [constant for constant in found if constant in expansions.known or find_palette(array_of(constant))]


class _Stored:
    """The parameters of the function: each array that is stored, or its palette, once."""

    def __init__(self, expansions: Expansions) -> None:
        self._expansions = expansions
        self._parameters: dict[int, tuple[Any, ...]] = {}
        self._palettes: dict[int, Palette] = {}
        self._values: dict[int, Any] = {}
        # Of views made here: an id is one array's only while it lives.
        self._alive: list[Array] = []
        self.parameters: list[Any] = []

    def add(self, array: Array) -> None:
        if _identity(array) in self._parameters:
            return
        self._alive.append(array)
        palette = find_palette(array)
        if palette is not None:
            self._palettes[_identity(array)] = palette
        parts = (array,) if palette is None else (palette.packed, palette.table)
        self._parameters[_identity(array)] = tuple(self._parameter(each) for each in parts)

    def _parameter(self, array: Array) -> Any:
        name = STORED_NAME.format(len(self.parameters))
        self.parameters.append(relax.Var(name, as_constant(array).ty))
        self._expansions.stored[name] = array
        return self.parameters[-1]

    def value(self, builder: Any, array: Array) -> Any:
        """The array inside of the function."""
        key = _identity(array)
        if key not in self._palettes:
            return self._parameters[key][0]
        if key not in self._values:
            call = builder.call_te(
                self._palettes[key].kernel, *self._parameters[key], primfunc_name_hint="expand_palette"
            )
            self._values[key] = builder.emit(call)
        return self._values[key]


def _identity(array: Array) -> int:
    """The same for two views of all of one memory."""
    return int(array.__array_interface__["data"][0])
