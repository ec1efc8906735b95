"""`share_weights`: each tensor of weights keeps a few distinct values, and a file that is that much smaller."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

import targets
from compiler.compression.outcome import CompressedModel, CompressionReport, LayerOutcome
from compiler.compression.quantization.accuracy import Evaluate, fewest
from compiler.compression.quantization.affine import decibels, noise_ratio
from compiler.compression.quantization.edit import Emit, edit_main, main_bindings, with_operands
from compiler.compression.quantization.operators import label_of
from compiler.compression.trial import Progress, Sample, Trial, begin, seconds
from compiler.compression.weight_sharing.clustering import cluster
from compiler.errors import AccuracyError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import Constants, Shapes
from compiler.passes.graph import Call, Expr, Var
from compiler.passes.matching import Array, array_of, as_constant
from compiler.passes.palette import SMALLEST

BITS = (4, 5, 6, 7, 8)
_WIDEST = BITS[-1]
# Bits by the name of a tensor; those that are not in it stay as they are.
Choice = Mapping[str, int]


def share_weights(
    source: object,
    calibration: Iterable[Sample] | None = None,
    *,
    bits: int = 6,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    keep: Collection[str] = (),
    target: str | targets.Target = "host",
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CompressedModel:
    """Replace the weights of each tensor by at most `2**bits` values (k-means), stored as indices of that many bits.

    A module's file holds the indices and the table; loading it expands them, so a run is as fast as before. Where the
    limit does not hold, the tensors that lost most get 8 bits, and where that is not enough either, the worst are
    left alone.

    Args:
        source, shapes, constants, example_inputs, dynamic_shapes, target, threads: as `compiler.compile` takes them.
        calibration: inputs as the model will meet them; needed without `evaluate`.
        bits: of an index, 4 to 8.
        evaluate, max_drop: as `compiler.quantize` takes them.
        keep: names of tensors (as in the report) to leave alone.

    Raises:
        AccuracyError: the limit does not hold with any tensor shared, or there is none to share.
        OptionError: an option is at fault.
        UserError: of importing and compiling.
    """
    if bits not in BITS:
        raise OptionError(f"bits={bits}", f"an index has {BITS[0]} to {BITS[-1]} bits")
    trial = begin(
        source,
        calibration,
        evaluate=evaluate,
        max_drop=max_drop,
        target=target,
        shapes=shapes,
        constants=constants,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        threads=threads,
        progress=progress,
    )
    tensors = _Tensors(trial.model)
    tensors.check(keep)
    names = [name for name in tensors.weights if name not in keep]
    if not names:
        raise AccuracyError(
            f"the model has no tensor of {SMALLEST} or more float32 weights", "there is nothing to share"
        )
    choice, after = _within_limit(trial, tensors, names, bits)
    candidate = tensors.shared(choice)
    return CompressedModel(
        **vars(candidate), name=trial.name, report=_report(trial, tensors, choice, after, bits, keep, candidate)
    )


class _Tensors:
    """The float32 constants of `main` that are large enough, by name, and versions of them."""

    def __init__(self, model: ImportedModel) -> None:
        self.model = model
        self.weights: dict[str, Array] = {}
        self._names: dict[tuple[Var, int], str] = {}
        self._by_constant: dict[Any, str] = {}
        self._shared: dict[tuple[str, int], Array] = {}
        for number, (variable, value) in enumerate(main_bindings(model.mod)):
            if isinstance(value, relax.Call):
                self._note(variable, value, number)

    def _note(self, variable: Var, call: Call, number: int) -> None:
        for index, argument in enumerate(call.args):
            if not isinstance(argument, GenericConst) or str(argument.ty.dtype) != "float32":
                continue
            array = array_of(argument)
            if array.ndim < 2 or array.size < SMALLEST or not np.isfinite(array).all():
                continue
            name = self._by_constant.setdefault(argument, label_of(call, number))
            self.weights[name] = array
            self._names[variable, index] = name

    def check(self, names: Collection[str]) -> None:
        for name in names:
            if name not in self.weights:
                raise OptionError(f"keep= has {name!r}, which is no tensor", f"there are {', '.join(self.weights)}")

    def values(self, name: str, bits: int) -> Array:
        """The tensor with few values."""
        if (name, bits) not in self._shared:
            self._shared[name, bits] = cluster(self.weights[name], bits)
        return self._shared[name, bits]

    def noise(self, name: str, bits: int) -> float:
        return decibels(*noise_ratio(self.values(name, bits), self.weights[name]))

    def shared(self, choice: Choice) -> ImportedModel:
        """The model with the tensors of `choice` shared."""

        def edit(variable: Var, call: Call, _: Emit) -> Expr | None:
            changed = {
                index: as_constant(self.values(name, choice[name]))
                for index in range(len(call.args))
                if (name := self._names.get((variable, index))) is not None and name in choice
            }
            return with_operands(call, changed) if changed else None

        return replace(self.model, mod=edit_main(self.model.mod, edit))


def _within_limit(trial: Trial, tensors: _Tensors, names: Sequence[str], bits: int) -> tuple[Choice, float]:
    """(bits of each tensor, the score): few bits, then more for the worst tensors, then fewer tensors."""
    scores: dict[int, float] = {}
    ranked = sorted(names, key=lambda name: tensors.noise(name, bits))

    def measured(make: Callable[[int], Choice]) -> Callable[[int], bool]:
        def holds(count: int) -> bool:
            trial.report(f"evaluate with {count} tensor(s) changed back" if count else "evaluate")
            scores[count] = trial.score(tensors.shared(make(count)))
            return trial.holds(scores[count])

        return holds

    def wider(count: int) -> Choice:
        return {name: _WIDEST if index < count else bits for index, name in enumerate(ranked)}

    def fewer(count: int) -> Choice:
        return dict.fromkeys(ranked[count:], _WIDEST)

    for make, most in ((wider, len(ranked) if bits < _WIDEST else 0), (fewer, len(ranked) - 1)):
        holds = measured(make)
        scores.clear()
        if holds(0):
            return make(0), scores[0]
        count = fewest(holds, most) if most else None
        if count is not None:
            return make(count), scores[count]
    raise trial.refuse("with any tensor shared")


def _report(
    trial: Trial,
    tensors: _Tensors,
    choice: Choice,
    after: float,
    bits: int,
    keep: Collection[str],
    candidate: ImportedModel,
) -> CompressionReport:
    trial.report("report")
    module = trial.compiled(candidate)
    here = trial.target.fits_this_machine()
    outcomes = []
    for name in tensors.weights:
        if name in choice:
            outcome = LayerOutcome(name, True, f"{choice[name]} bits", tensors.noise(name, choice[name]))
        else:
            reason = "asked for" if name in keep else "the limit does not hold with it"
            outcome = LayerOutcome(name, False, f"left alone: {reason}")
        outcomes.append(outcome)
    return CompressionReport(
        technique=f"weights shared, {bits} bits",
        target=trial.target.name,
        before=trial.before,
        after=after,
        drop=trial.drop(after),
        max_drop=trial.max_drop,
        evaluations=trial.evaluations,
        bytes_before=sum(each.nbytes for each in trial.module.manifest.parameters),
        bytes_after=sum(each.nbytes for each in module.manifest.parameters),
        seconds_before=seconds(trial.module, trial.sample) if here else None,
        seconds_after=seconds(module, trial.sample) if here else None,
        layers=tuple(outcomes),
    )
