"""Find the batch axis of a module's inputs and outputs, and check that its rows are independent.

Shapes alone do not determine it: a symbolic first dimension may be a sequence whose elements attend to each other. So
the module is run: rows in one batch must give the same results as each row separately.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from compiler.artifact import TensorDescription
from compiler.errors import InputError, VerificationError
from compiler.runtime import Module
from compiler.runtime.random_inputs import random_inputs
from compiler.runtime.tensors import compare

Array = np.ndarray
Arrays = Mapping[str, Array]
_PROBES = 2


@dataclass(frozen=True)
class BatchLayout:
    """The batch axes of a module.

    Attributes:
        name: the symbolic batch dimension; "batch" if the module has a fixed number of rows.
        inputs: batch axis of each input; unnamed inputs are the same for all rows.
        outputs: batch axis of each output.
        rows: number of rows of each run; None: any number.
    """

    name: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    rows: int | None = None

    def described(self, tensors: Sequence[TensorDescription], axes: Mapping[str, int]) -> tuple[TensorDescription, ...]:
        """Describe a module's tensors as clients of a batching service see them."""
        return tuple(self._described(each, axes.get(each.name)) for each in tensors)

    def _described(self, tensor: TensorDescription, axis: int | None) -> TensorDescription:
        if axis is None:
            return tensor
        shape = tuple(self.name if index == axis else size for index, size in enumerate(tensor.shape))
        return msgspec.structs.replace(tensor, shape=shape)

    def joined(self, parts: Sequence[Arrays]) -> dict[str, Array]:
        """Concatenate the rows of several sets of inputs."""
        if len(parts) == 1:
            return dict(parts[0])
        first = parts[0]
        return {
            name: np.concatenate([part[name] for part in parts], axis=self.inputs[name])
            if name in self.inputs
            else each
            for name, each in first.items()
        }

    def padded(self, inputs: Arrays, rows: int, wanted: int) -> Arrays:
        """Repeat the last row of inputs up to the wanted number of rows."""
        if rows == wanted:
            return inputs
        order = np.minimum(np.arange(wanted), rows - 1)
        return {
            name: array.take(order, axis=self.inputs[name]) if name in self.inputs else array
            for name, array in inputs.items()
        }

    def rows_of(self, outputs: Arrays, start: int, stop: int) -> dict[str, Array]:
        """Copy some rows of a run's outputs."""
        return {name: self._slice(array, self.outputs[name], start, stop).copy() for name, array in outputs.items()}

    def joined_outputs(self, parts: Sequence[Arrays]) -> dict[str, Array]:
        """Concatenate the outputs of several runs."""
        return {name: np.concatenate([part[name] for part in parts], axis=axis) for name, axis in self.outputs.items()}

    def part_of(self, inputs: Arrays, start: int, stop: int) -> dict[str, Array]:
        """Return views of some rows of a request's inputs."""
        return {
            name: self._slice(array, self.inputs[name], start, stop) if name in self.inputs else array
            for name, array in inputs.items()
        }

    @staticmethod
    def _slice(array: Array, axis: int, start: int, stop: int) -> Array:
        return array[start:stop] if axis == 0 else array[(slice(None),) * axis + (slice(start, stop),)]


def find_layout(module: Module) -> BatchLayout | None:
    """Find a layout whose rows are independent of each other by running the module; None if there is none.

    Random rows are run separately and together; the results must agree within the module's own tolerance.
    """
    for layout in _candidates(module):
        if all(_holds(module, layout, seed) for seed in range(_PROBES)):
            return layout
    return None


def _candidates(module: Module) -> Iterator[BatchLayout]:
    outputs = module.outputs
    if not outputs or not module.inputs:
        return
    for symbol in dict.fromkeys(size for each in module.inputs for size in each.shape if isinstance(size, str)):
        inputs = {each.name: each.shape.index(symbol) for each in module.inputs if each.shape.count(symbol) == 1}
        repeated = any(each.shape.count(symbol) > 1 for each in module.inputs)
        if not repeated and all(each.shape.count(symbol) == 1 for each in outputs):
            yield BatchLayout(symbol, inputs, {each.name: each.shape.index(symbol) for each in outputs})
    sizes = {each.shape[0] if each.shape else None for each in (*module.inputs, *outputs)}
    (size,) = sizes if len(sizes) == 1 else (None,)
    if isinstance(size, int) and size > 1:
        names = {size for each in (*module.inputs, *outputs) for size in each.shape}
        name = next(each for each in ("batch", "batch_rows", "serving_batch_rows") if each not in names)
        yield BatchLayout(
            name,
            dict.fromkeys((each.name for each in module.inputs), 0),
            dict.fromkeys((o.name for o in outputs), 0),
            size,
        )


def _holds(module: Module, layout: BatchLayout, seed: int) -> bool:
    try:
        together, apart = (_fixed_runs if layout.rows is not None else _dynamic_runs)(module, layout, seed)
        for one, other in zip(together, apart, strict=True):
            compare(one, other, module.manifest.reference_tolerance)
    except (InputError, VerificationError, ValueError):
        return False  # refused sizes or different results: its rows cannot be batched
    return all(np.isfinite(array.astype(np.float64)).any() for outputs in apart for array in outputs.values())


def _dynamic_runs(module: Module, layout: BatchLayout, seed: int) -> tuple[list[Arrays], list[Arrays]]:
    """Return results of 1 and 2 rows together, and of each row separately."""
    counts = (1, 2)
    parts = [_made_up(module, seed * len(counts) + index, {layout.name: rows}) for index, rows in enumerate(counts)]
    shared = {name: array for name, array in parts[0].items() if name not in layout.inputs}
    parts = [{**part, **shared} for part in parts]
    outputs = module.run(layout.joined(parts))
    return ([layout.rows_of(outputs, 0, 1), layout.rows_of(outputs, 1, 3)], [module.run(part) for part in parts])


def _fixed_runs(module: Module, layout: BatchLayout, seed: int) -> tuple[list[Arrays], list[Arrays]]:
    """Return results of rows in a batch; and in other positions, and next to copies of one of them."""
    assert layout.rows is not None
    inputs = _made_up(module, seed, {})
    half = max(1, layout.rows // 2)
    alone = layout.padded(layout.part_of(inputs, 0, half), half, layout.rows)
    turned = {name: np.ascontiguousarray(np.flip(array, layout.inputs[name])) for name, array in inputs.items()}
    outputs = module.run(inputs)
    expected = {name: np.flip(array, layout.outputs[name]) for name, array in outputs.items()}
    return (
        [expected, layout.rows_of(outputs, 0, half)],
        [module.run(turned), layout.rows_of(module.run(alone), 0, half)],
    )


def _made_up(module: Module, seed: int, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Create random inputs with the stored example's sizes, except for the given ones."""
    known = dict(module.manifest.reference_sizes)
    examples = module.artifact.reference_inputs
    for each in module.inputs:
        if each.name in examples:
            pairs = zip(each.shape, examples[each.name].shape, strict=True)
            known.update({size: actual for size, actual in pairs if isinstance(size, str)})
    return random_inputs(module.inputs, seed=seed, sizes={**known, **sizes}, indices=module.manifest.indices)
