"""The example stored in a module: the inputs and outputs of one run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.artifact import Manifest
from compiler.frontends.imported_model import ImportedModel
from compiler.runtime import Module
from compiler.runtime.random_inputs import random_inputs
from compiler.runtime.state_sizes import state_symbols, symbols_of

Arrays = Mapping[str, np.ndarray]
_SYMBOLIC_SIZE = 2  # as of `random_inputs`
_MOST_STATE_BYTES = 1 << 16  # bytes of a state's new value that are stored; a whole cache would dwarf the module


def inputs_in_order(given: Arrays | None, model: ImportedModel) -> list[np.ndarray] | None:
    """Values by name as the arguments of `main`; None unless all are there.

    States and their position, which a session gives, are made up where they are not there: these rows are in bounds.
    """
    values = dict(given or {})
    if model.states and model.position is not None:
        rows = model.position.rows
        count = rows if isinstance(rows, int) else _SYMBOLIC_SIZE
        sizes = dict.fromkeys(_row_symbols(model), 2 * count)
        made = random_inputs(model.inputs, indices=model.indices, sizes=sizes)
        made[model.position.input] = np.zeros_like(made[model.position.input])
        values = {**made, **values}
    names = [spec.name for spec in model.inputs]
    return [np.asarray(values[name]) for name in names] if set(names) <= set(values) else None


def _row_symbols(model: ImportedModel) -> set[str]:
    """Symbolic dimensions that are capacities."""
    shapes = {spec.name: spec.shape for spec in model.inputs}
    sizes = [shapes[state.input][state.axis] for state in model.states if state.axis is not None]
    return {size for size in sizes if isinstance(size, str)}


def with_example(module: Module, runner: Module, model: ImportedModel, given: Arrays | None) -> Module:
    """The module with an example in it, which `runner`, the same model for this machine, runs.

    Of a model with states it is the first run of a session: without the states, and with the new values of small ones.

    Raises what running the example raises.
    """
    own = {each.input for each in model.states} | ({model.position.input} if model.position is not None else set())
    specs = [each for each in model.inputs if each.name not in own]
    inputs = dict(given) if given is not None else random_inputs(specs, indices=model.indices)
    sizes = {} if len(inputs) == len(model.inputs) else _state_sizes(module.manifest)
    outputs = runner.run_example(inputs, sizes)
    updated = {each.output for each in model.states}
    kept = {k: v for k, v in outputs.items() if k not in updated or v.nbytes <= _MOST_STATE_BYTES}
    return module.with_reference(inputs, kept, sizes)


def _state_sizes(manifest: Manifest) -> dict[str, int]:
    """Sizes of the states' dimensions that no other input has: enough rows for one run."""
    told = set().union(*(symbols_of(each) for each in manifest.session_inputs))
    open_sizes = state_symbols(manifest) - told
    rows = manifest.position.rows if manifest.position is not None else 0
    return dict.fromkeys(sorted(open_sizes), max(_SYMBOLIC_SIZE, rows if isinstance(rows, int) else 0))
