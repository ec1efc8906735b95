"""Sizes of a session's states: known when it is opened, or determined by its first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compiler.artifact import Artifact, Manifest, TensorDescription
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import InputError, OptionError
from compiler.support.formula import FormulaError, parsed

Sizes = dict[str, int]


_MAX_ROWS = 1 << 48


def given_sizes(manifest: Manifest, capacity: int | None, sizes: Mapping[str, int] | None) -> Sizes:
    """The symbolic dimensions that are known when a session is opened.

    Raises OptionError for a dimension that no state has, a capacity for static states, and a missing dynamic size that
    the inputs do not determine.
    """
    known = dict(sizes or {})
    symbols = state_symbols(manifest)
    unknown = sorted(set(known) - symbols)
    if unknown:
        names = ", ".join(sorted(symbols)) or "none"
        raise OptionError(f"no state has the dimension {unknown[0]!r}", f"symbolic dimensions of states: {names}")
    axes = _row_sizes(manifest)
    if capacity is not None:
        _check_capacity(axes, capacity)
        known.update((axis, capacity) for axis in axes & symbols if isinstance(axis, str))
    for name, size in known.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise OptionError(f"the size of {name!r} must be a number, not {size!r}")
    told = set().union(*(symbols_of(each) for each in manifest.session_inputs))
    missing = sorted(symbols - told - set(known))
    if missing:
        as_rows = missing[0] in axes
        what = "session(capacity=...)" if as_rows else f"session(sizes={{{missing[0]!r}: ...}})"
        raise OptionError(f"the states have a dynamic size {missing[0]!r} that must be given", f"open it with {what}")
    return known


def _check_capacity(axes: set[int | str], capacity: object) -> None:
    if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
        raise OptionError(f"capacity must be a number of rows, not {capacity!r}")
    if capacity > _MAX_ROWS:
        raise OptionError(f"no memory holds {capacity} rows", "give a smaller capacity")
    if not axes:
        raise OptionError("the states of the module have no rows, so capacity does not apply", "omit capacity")
    fixed = sorted(axis for axis in axes if isinstance(axis, int) and axis != capacity)
    if fixed:
        raise OptionError(f"the module was compiled for a capacity of {fixed[0]}, not {capacity}", "omit capacity")


def capacity_of(manifest: Manifest, sizes: Mapping[str, int]) -> int | None:
    """Number of rows of the states; None if not known, or if no state has rows."""
    if manifest.position is None:
        return None
    rows = [size if isinstance(size, int) else sizes.get(size) for size in _row_sizes(manifest)]
    known = [size for size in rows if size is not None]
    return min(known) if known and len(known) == len(rows) else None


def has_open_capacity(manifest: Manifest) -> bool:
    """True if a session has a configurable number of rows."""
    return any(isinstance(size, str) for size in _row_sizes(manifest))


def rows_of_run(manifest: Manifest, described: Sequence[TensorDescription], inputs: Mapping[str, object]) -> int:
    """Number of rows that a run on these inputs, `described` by the manifest, adds; 0 if they do not determine it, in
    which case they are not inputs of the module."""
    if manifest.position is None:
        return 0
    rows = manifest.position.rows
    return rows if isinstance(rows, int) else _told(described, inputs).get(rows, 0)


def completed(manifest: Manifest, sizes: Mapping[str, int], inputs: Mapping[str, object]) -> Sizes:
    """Add the sizes that the inputs determine. Raises InputError if a size of a state is still unknown."""
    known = {**_told(manifest.session_inputs, inputs), **sizes}
    missing = sorted(state_symbols(manifest) - set(known))
    if missing:
        takes = "; ".join(map(str, manifest.session_inputs))
        raise InputError(f"the inputs do not determine the size {missing[0]!r} of the states", f"a run takes {takes}")
    return known


def are_known(manifest: Manifest, sizes: Mapping[str, int]) -> bool:
    """True if all sizes of the states are known."""
    return state_symbols(manifest) <= set(sizes)


def shape_of(description: TensorDescription, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a state or a position whose dimensions are all known. Raises InputError if it has none."""
    try:
        return tuple(
            size if isinstance(size, int) else sizes[size] if size in sizes else parsed(size).value(sizes)
            for size in description.shape
        )
    except FormulaError as error:
        raise InputError(f"{description} has no shape: {error}") from error


def states_of(manifest: Manifest) -> list[TensorDescription]:
    """The inputs that are states."""
    names = {state.input for state in manifest.states}
    return [each for each in manifest.inputs if each.name in names]


def grown_sizes(manifest: Manifest, length: int) -> Sizes:
    """Sizes that equal the number of rows in use, given as `length`: of axes that states grow along, and of a position
    whose size is that number."""
    shapes = {each.name: each.shape for each in manifest.inputs}
    axes = [shapes[state.input][state.axis or 0] for state in manifest.states if state.grows]
    if manifest.position is not None:
        others = {size for each in manifest.inputs if each.name != manifest.position.input for size in each.shape}
        axes += [size for size in shapes[manifest.position.input] if size not in others]
    return {axis: length for axis in axes if isinstance(axis, str)}


def grown_length(manifest: Manifest, sizes: Mapping[str, int]) -> int | None:
    """Length of the states after a run with these input sizes; None if it is not known beforehand."""
    shapes = {each.name: each.shape for each in manifest.outputs}
    for state in manifest.states:
        if state.grows:
            size = shapes[state.output][state.axis or 0]
            try:
                return size if isinstance(size, int) else parsed(size).value(sizes)
            except (FormulaError, KeyError):
                return None
    return None


def state_symbols(manifest: Manifest) -> set[str]:
    """The symbolic dimensions of states, without those that they grow along."""
    symbols = set().union(*(symbols_of(each) for each in states_of(manifest)))
    return symbols - set(grown_sizes(manifest, 0))


def first_inputs(artifact: Artifact) -> dict[str, np.ndarray]:
    """The inputs of the stored example by name, including those that a session provides in its first run."""
    manifest, stored = artifact.manifest, artifact.reference_inputs
    if len(stored) == len(manifest.inputs):
        return dict(stored)
    sizes = {**completed(manifest, manifest.reference_sizes, stored), **grown_sizes(manifest, 0)}
    values = {**artifact.initial_states, **stored}
    for spec in manifest.inputs:
        if spec.name not in values:
            values[spec.name] = np.zeros(shape_of(spec, sizes), ELEMENT_TYPES[spec.dtype].numpy)
    return {spec.name: values[spec.name] for spec in manifest.inputs}


def symbols_of(description: TensorDescription) -> set[str]:
    """The symbolic dimensions in a shape."""
    symbols: set[str] = set()
    for size in description.shape:
        if isinstance(size, str):
            try:
                symbols |= {size} if size.isidentifier() else set(parsed(size).names)
            except FormulaError:
                symbols.add(size)
    return symbols


def _row_sizes(manifest: Manifest) -> set[int | str]:
    """The sizes of the axes that hold rows."""
    shapes = {each.name: each.shape for each in manifest.inputs}
    return {shapes[state.input][state.axis] for state in manifest.states if state.axis is not None}


def _told(described: Sequence[TensorDescription], inputs: Mapping[str, Any]) -> Sizes:
    """The sizes of symbolic dimensions determined by the shapes of inputs."""
    sizes: Sizes = {}
    for description in described:
        value = inputs.get(description.name)
        shape = getattr(value, "shape", None)
        if value is None or not any(isinstance(size, str) for size in description.shape):
            continue
        actual = np.shape(value) if shape is None else tuple(shape)
        if len(actual) == len(description.shape):
            sizes.update((n, int(s)) for n, s in zip(description.shape, actual, strict=True) if isinstance(n, str))
    return sizes
