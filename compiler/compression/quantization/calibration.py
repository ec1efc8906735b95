"""Running the float model on the caller's data and looking at the tensors inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from tvm.ir import IRModule

from compiler.compression.quantization.edit import edit_main
from compiler.compression.quantization.histogram import Statistics
from compiler.compression.samples import Sample
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.rewriting.graph import Var
from compiler.runtime import Module

Array = NDArray[Any]
Compile = Callable[[ImportedModel], Module]


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
