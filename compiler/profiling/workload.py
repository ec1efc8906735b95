"""A module together with inputs, for repeated runs while measuring.

Also statistics of the arrays that a run returns, and saving them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from compiler.artifact import Key
from compiler.artifact.manifest import TensorDescription
from compiler.artifact.storage import write_atomically
from compiler.errors import InputError, OptionError, type_text
from compiler.runtime import Module, load
from compiler.runtime.fitting_sizes import fitting_sizes
from compiler.runtime.random_inputs import random_inputs
from compiler.runtime.state_sizes import first_inputs
from compiler.runtime.threads import run_with

if TYPE_CHECKING:
    from compiler.frontends.imported_model import TensorSpec

Result = TypeVar("Result")
RANDOM = "random"
"""Used as an input's value to request random values."""
DEFAULT_SIZE = 1
"""Default size of symbolic dimensions."""


@dataclass
class Workload:
    """A module, inputs, and its own virtual machine with the inputs already bound.

    Attributes:
        run: one inference, without checking inputs or creating output arrays.
        set_instrument: sets the virtual machine's instrument; None removes it.
    """

    module: Module
    inputs: dict[str, Any]
    run: Callable[[], object]
    set_instrument: Callable[[Any], Any]

    def on_its_threads(self, function: Callable[[], Result]) -> Result:
        """Call `function` with the module's number of threads for kernels."""
        return run_with(self.module.threads, function)

    def shapes(self) -> dict[str, str]:
        """Dtype and shape of each input, as text."""
        return {name: f"{array.dtype}{list(array.shape)}" for name, array in self.inputs.items()}


def prepare(
    source: object,
    inputs: Mapping[str, object] | Sequence[object] | None = None,
    *,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Workload:
    """Make a workload from a `Module` or the path of a `.twm` file.

    Raises:
        OptionError: `source` is neither, or `sizes` names no symbolic dimension of the module.
        InputError: `inputs` do not match the module.
    """
    module = as_module(source, threads)
    arrays = complete_inputs(module, inputs, sizes)
    machine, run = module.prepare(arrays)
    return Workload(module, arrays, run, machine["set_instrument"])


def as_module(source: object, threads: int | None = None, trusted_keys: Sequence[Key] | None = None) -> Module:
    """`source` if it is a `Module`, otherwise the module in the `.twm` file at that path, set to this number of
    threads;
    if there are trusted keys, the file must be signed by one of them."""
    if isinstance(source, str | os.PathLike):
        return load(source, threads=threads, trusted_keys=trusted_keys)
    if not isinstance(source, Module):
        raise OptionError(
            f"{type_text(source)} cannot be measured",
            "compile it first: tensorwright.compile(...), or give a .twm file",
        )
    if threads is None:
        return source
    artifact = source.artifact
    sizes = artifact.manifest.reference_sizes
    module = source.with_reference(artifact.reference_inputs, artifact.reference_outputs, sizes)
    module.threads = threads
    return module


def complete_inputs(
    module: Module, inputs: Mapping[str, object] | Sequence[object] | None, sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Inputs by name: the given ones, and for the rest the module's stored reference or random values.

    The reference input is a better guess than random values, since it ran when the module was compiled; it is used if
    no values or sizes are given; the value `RANDOM` requests random ones. Missing sizes are 1, or a size that the
    module's requirements allow.

    Raises:
        InputError: a name that the module does not have, or too many inputs.
        OptionError: `sizes` names no symbolic dimension.
    """
    named = _named(module.inputs, inputs)
    known = symbolic_sizes(module.inputs, named, sizes)
    missing = [spec for spec in module.inputs if _is_missing(named, spec.name)]
    if _uses_reference(module, named, sizes):
        return first_inputs(module.artifact)
    bound = {size for spec in module.inputs if spec not in missing for size in spec.shape} | set(sizes or {})
    known = fitting_sizes(known, set(known) - bound, module.manifest.requirements)
    generated = random_inputs(missing, sizes=known, indices=module.manifest.indices)
    position = module.manifest.position
    if position is not None and position.input in generated:
        generated[position.input][...] = 0  # where there is room for rows
    return {spec.name: generated[spec.name] if spec.name in generated else named[spec.name] for spec in module.inputs}


def _is_missing(named: Mapping[str, object], name: str) -> bool:
    value = named.get(name)
    return name not in named or (isinstance(value, str) and value == RANDOM)


def _uses_reference(module: Module, named: Mapping[str, object], sizes: Mapping[str, int] | None) -> bool:
    return not named and not sizes and bool(module.artifact.reference_inputs)


def made_up_note(module: Module, named: Mapping[str, object], sizes: Mapping[str, int] | None) -> str | None:
    """Note on the inputs that `complete_inputs` fills in; None if every input is given."""
    missing = [spec.name for spec in module.inputs if _is_missing(named, spec.name)]
    if not missing:
        return None
    kind = "the module's stored example" if _uses_reference(module, named, sizes) else "random values"
    return f"{kind} for {', '.join(missing)}"


def batch_dimension(module: Module) -> str | None:
    """The symbolic dimension that is the first of every input with a symbolic first dimension; None if there are
    several, or if the module keeps states or relates the dimension to other sizes."""
    first = {spec.shape[0] for spec in module.inputs if spec.shape and isinstance(spec.shape[0], str)}
    manifest = module.manifest
    if len(first) != 1 or manifest.states:
        return None
    (name,) = map(str, first)
    return None if any(name in each.symbols.values() for each in manifest.requirements) else name


def with_rows(module: Module, arrays: Mapping[str, np.ndarray], dimension: str, rows: int) -> dict[str, np.ndarray]:
    """Inputs with another size of a symbolic dimension: the first rows along it, repeated if there are too few."""
    chosen = dict(arrays)
    for spec in module.inputs:
        for axis, size in enumerate(spec.shape):
            if size == dimension:
                array = chosen[spec.name]
                chosen[spec.name] = np.take(array, np.arange(rows) % array.shape[axis], axis)
    return chosen


def _named(
    specs: Sequence[TensorDescription], inputs: Mapping[str, Any] | Sequence[Any] | None
) -> dict[str, np.ndarray]:
    if inputs is None:
        return {}
    if isinstance(inputs, Mapping):
        unknown = sorted(set(inputs) - {spec.name for spec in specs})
        if unknown:
            raise InputError(
                f"no input is named {', '.join(map(repr, unknown))}",
                "the module takes " + ("; ".join(map(str, specs)) or "no inputs"),
            )
        return dict(inputs)
    if len(inputs) > len(specs):
        raise InputError(f"expected at most {len(specs)} input{'s' * (len(specs) != 1)}, got {len(inputs)}")
    return {spec.name: value for spec, value in zip(specs, inputs, strict=False)}


def symbolic_sizes(
    specs: Sequence[TensorDescription] | Sequence[TensorSpec],
    named: Mapping[str, object],
    sizes: Mapping[str, int] | None,
) -> dict[str, int]:
    """The size of each symbolic dimension: from given inputs, otherwise from `sizes`, otherwise `DEFAULT_SIZE`."""
    symbols = {size for spec in specs for size in spec.shape if isinstance(size, str)}
    unknown = sorted(set(sizes or {}) - symbols)
    if unknown:
        names = ", ".join(sorted(symbols)) or "none"
        raise OptionError(f"no symbolic dimension is named {', '.join(map(repr, unknown))}", f"the module has: {names}")
    values = dict.fromkeys(symbols, DEFAULT_SIZE) | dict(sizes or {})
    for spec in specs:
        shape = getattr(named.get(spec.name), "shape", ())
        for described, actual in zip(spec.shape, shape, strict=False):
            if isinstance(described, str):
                values[described] = int(actual)
    return values


def describe_arrays(arrays: Mapping[str, object]) -> list[dict[str, Any]]:
    """Name, dtype, shape, minimum, maximum and mean (of finite values; None if there are none), and the number of NaN
    and infinite values."""
    return [_describe(name, np.asarray(array)) for name, array in arrays.items()]


def _describe(name: str, array: np.ndarray) -> dict[str, Any]:
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    return {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "mean": float(finite.mean()) if finite.size else None,
        "nan": int(np.isnan(values).sum()),
        "infinite": int(np.isinf(values).sum()),
    }


def save_arrays(arrays: Mapping[str, object], path: Path) -> None:
    """Write arrays as an .npz archive, atomically. Types that numpy has no name for become float32. Raises StorageError
    if the file cannot be written."""
    stored: dict[str, Any] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        stored[name] = array.astype(np.float32) if array.dtype.kind == "V" else array
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    write_atomically(path, [buffer.getvalue()])
