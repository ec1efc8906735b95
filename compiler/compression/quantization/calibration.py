"""Running the float model on the caller's data and looking at the tensors inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.ir import IRModule

from compiler.compression.quantization.edit import edit_main
from compiler.compression.quantization.statistics import Statistics
from compiler.errors import InputError, OptionError, UserError
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.rewriting.graph import Var
from compiler.runtime import Module

Array = NDArray[Any]
Sample = Mapping[str, Array]
Compile = Callable[[ImportedModel], Module]
_WANTED = "give a sequence of {input name: array}, or something that yields them"


def checked_samples(calibration: Iterable[Sample], model: ImportedModel) -> list[dict[str, Array]]:
    """The samples as dictionaries of arrays of all inputs.

    Raises:
        OptionError: there is none, or giving them fails.
        InputError: one lacks an input, has one that the model does not, or holds NaN.
    """
    if isinstance(calibration, Mapping | str | np.ndarray) or not isinstance(calibration, Iterable):
        raise OptionError(f"calibration= is a {type(calibration).__name__}", _WANTED)
    names = {spec.name for spec in model.inputs}
    try:
        samples = [_checked_sample(sample, f"calibration[{index}]", names) for index, sample in enumerate(calibration)]
    except UserError:
        raise
    except Exception as error:
        raise OptionError(f"calibration= raised {type(error).__name__}: {error}", _WANTED) from error
    if not samples:
        raise OptionError("calibration= holds no samples", "give some inputs as the model will meet them")
    return samples


def _form(names: set[str]) -> str:
    return "{" + ", ".join(f"{name!r}: array" for name in sorted(names)) + "}"


def _checked_sample(sample: Sample, where: str, names: set[str]) -> dict[str, Array]:
    if not isinstance(sample, Mapping):
        raise OptionError(f"{where} is a {type(sample).__name__}", f"give a dict by input name: {_form(names)}")
    missing, unknown = sorted(names - set(sample)), sorted(map(str, set(sample) - names))
    if missing or unknown:
        problems = [f"lacks {missing}"] if missing else []
        problems += [f"has {unknown}, which the model does not take"] if unknown else []
        raise InputError(f"{where} {' and '.join(problems)}", f"the model's inputs are {sorted(names)}")
    arrays = {name: np.asarray(value) for name, value in sample.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise InputError(f"{where} holds NaN in {name!r}", "leave out what the model is not meant to meet")
    return arrays


class Tapped:
    """A compiled module that gives tensors from inside `main` beside its outputs."""

    def __init__(self, model: ImportedModel, mod: IRModule, taps: Sequence[Var], compile_model: Compile) -> None:
        """Compile `mod`, a version of `model.mod` in which the variables `taps` are still bound."""
        self._taps = list(taps)
        self._names = [f"tap{index}" for index in range(len(taps))]
        specs = [TensorSpec(name, (), "float32") for name in self._names]
        outputs = [*model.outputs, *(replace(spec, shape=_shape(tap)) for spec, tap in zip(specs, taps, strict=True))]
        tapped = edit_main(mod, taps=self._taps)
        self._module = compile_model(replace(model, mod=tapped, outputs=outputs))

    def run(self, sample: Sample) -> tuple[dict[str, Array], dict[Var, Array]]:
        """(outputs by name, tensors by variable)."""
        outputs = dict(self._module.run(sample))
        inner = {tap: outputs.pop(name) for tap, name in zip(self._taps, self._names, strict=True)}
        return outputs, inner


def _shape(variable: Var) -> tuple[int | str, ...]:
    return tuple(int(size) if str(size).isdigit() else str(size) for size in variable.ty.shape)


def observe(
    tapped: Tapped,
    samples: Iterable[Sample],
    sites: Iterable[Var],
    channels: Mapping[Var, int],
    look: Callable[[Mapping[Var, Array]], object],
) -> tuple[dict[Var, Statistics], list[dict[str, Array]]]:
    """(what tensors hold over all samples, the outputs of each sample); no inner tensor is kept.

    Args:
        sites: tapped variables to observe.
        channels: the axis of the channels of those variables where they matter.
        look: called with the tensors of each sample.
    """
    seen = {variable: Statistics(channels.get(variable)) for variable in sites}
    outputs = []
    for sample in samples:
        result, tensors = tapped.run(sample)
        outputs.append(result)
        for variable, statistics in seen.items():
            statistics.add(tensors[variable])
        look(tensors)
    return seen, outputs
