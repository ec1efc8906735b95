"""Constant weights of products as matrices of results by operands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.ir import GenericConst, IRModule

from compiler.compression.pruning.dependencies import Dependencies
from compiler.compression.quantization.edit import edit_main, with_operands
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import Array, array_of, as_constant

_FEWEST = 256  # elements; smaller weights cost nothing and hurt when thinned


@dataclass(frozen=True)
class Weight:
    """One weight. `axis` counts the results of its product; `name` is for reports, "" where the model has none."""

    constant: GenericConst
    axis: int
    name: str = ""

    def matrix(self, values: Array) -> Array:
        """(results, operands); operands of a convolution by kernel place, then by channel."""
        moved = np.moveaxis(values, self.axis, 0)
        if moved.ndim > 2:
            moved = np.moveaxis(moved, 1, -1)
        return moved.reshape(moved.shape[0], -1)

    def restored(self, matrix: Array) -> Array:
        """Back from `matrix`."""
        shape = list(array_of(self.constant).shape)
        moved = [shape.pop(self.axis), *shape]
        if len(moved) > 2:
            moved = [moved[0], *moved[2:], moved[1]]
        values = matrix.reshape(moved)
        if len(moved) > 2:
            values = np.moveaxis(values, -1, 1)
        return np.ascontiguousarray(np.moveaxis(values, 0, self.axis))


def weights_of(found: Dependencies) -> list[Weight]:
    """The weights of products, each once, but for tiny and vector ones."""
    seen: dict[GenericConst, Weight] = {}
    for producer in found.producers:
        array = array_of(producer.constant)
        if array.ndim >= 2 and array.size >= _FEWEST and array.dtype == np.float32:
            seen.setdefault(
                producer.constant, Weight(producer.constant, producer.axis, found.names.get(producer.constant, ""))
            )
    return list(seen.values())


def with_constants(mod: IRModule, replaced: dict[GenericConst, Array]) -> IRModule:
    """`mod` with constants of outermost calls replaced by others of the same shape and data type."""
    new = {constant: as_constant(array) for constant, array in replaced.items()}

    def edit(variable: Var, call: Call, emit: object) -> Expr | None:
        operands = {i: new[each] for i, each in enumerate(call.args) if isinstance(each, GenericConst) and each in new}
        return with_operands(call, operands) if operands else None

    return edit_main(mod, edit)
