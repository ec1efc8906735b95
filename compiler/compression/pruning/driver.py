"""`prune`: a model in, one with channels removed or weights set to zero out, with its accuracy measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import Unpack

import targets
from compiler.compression.job import JobOptions, Samples, start
from compiler.compression.model import CompressedModel
from compiler.compression.pruning.one_shot import OneShot
from compiler.compression.pruning.settings import PruningOptions
from compiler.errors import AccuracyError, OptionError
from compiler.frontends.source import ImportOptions
from compiler.support.accuracy import Evaluate
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, options_of, takes_imports
from compiler.support.progress_bar import automatic, shows_progress

_SEARCHED = tuple(step / 20 for step in range(1, 19))  # amounts that amount=None chooses from


@interruptible
@shows_progress
@takes_imports
def prune(
    source: object,
    amount: float | None = 0.5,
    *,
    pattern: str = "channels",
    criterion: str = "magnitude",
    scope: str = "layer",
    steps: int = 1,
    finetune: Callable[[Any], object] | None = None,
    loss: Callable[[Any], Any] | None = None,
    rewind: Mapping[str, object] | None = None,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **imports: Unpack[ImportArguments],
) -> CompressedModel:
    """Remove channels or heads from a model, or set weights to zero, those that matter least.

    Args:
        source, target, threads, and how the source is imported (shapes, constants, state, capacity, ...): as in
            `tensorwright.compile`.
        amount: the share that goes. None: the largest multiple of 5 % with which `max_drop` holds.
        pattern: "channels" and "heads" (of attention) make the graph smaller: whatever else depends on them, through
            residuals, concatenations and grouped convolutions, goes with them; "layers" leaves out what residual sums
            add to their inputs. "elements" sets single weights to zero, "2:4" all but two of every four operands,
            "16x1" blocks of 16 results by 1 operand, which kernels skip where that is faster.
        criterion: "magnitude"; "influence" (of layers: how much they turn what passes them, by `calibration`);
            "gradient" (first order: weight times gradient of `loss`); "second-order": with `loss`
            its curvature (the diagonal of Fisher's matrix), with `calibration` that of each layer's result, where what
            stays makes up for what goes (Optimal Brain Surgeon).
        scope: "layer": each loses `amount`; "global": together they do.
        steps: number of times to prune and fine-tune; the amount grows as 1 - (1 - step / steps)^3.
        finetune: for a `torch.nn.Module`: given it, trains it; pruned weights stay zero meanwhile.
        loss: for a `torch.nn.Module`: given it, the loss on some data, or an iterable of losses.
        rewind: a state of the module to go back to before each fine-tuning (lottery tickets).
        calibration: inputs as the model will meet them, {input name: array}.
        evaluate: given a function from inputs to outputs, how good it is; higher is better. Without one, with
            `calibration`: the mean cosine between the outputs and those before; else accuracy is not measured.
        max_drop: how much of that may be lost, as a share.

    Returns:
        A `CompressedModel` for `tensorwright.compile` or a further technique; `report` says what was done.

    Raises:
        AccuracyError: the limit does not hold.
        OptionError: an option is at fault, or nothing in the model can be pruned so.
        UserError: of importing and compiling.
    """
    options = options_of(PruningOptions, locals())
    common = options_of(JobOptions, locals())
    return _pruned(source, options, common, ImportOptions.of(imports))


def _pruned(source: object, options: PruningOptions, common: JobOptions, imports: ImportOptions) -> CompressedModel:
    options.check(has_samples=common.calibration is not None, has_measure=common.evaluate is not None)
    if options.trains and not hasattr(source, "named_parameters"):
        raise OptionError("finetune=, loss= and rewind= are for a torch.nn.Module", f"this is {type(source).__name__}")
    job = start(source, common, imports)
    if options.trains:
        from compiler.compression.pruning.training import prune_trained

        assert options.amount is not None  # as checked
        return prune_trained(job, source, options, options.amount, job.imports)
    work = OneShot(job, options.plan())
    if options.amount is not None:
        result = work.pruned(options.amount)
        job.require(result.report.after, "prune less, give finetune=, or let amount=None find what holds")
        return result
    return _largest(work)


def _largest(work: OneShot) -> CompressedModel:
    """The largest amount with which the limit holds, if less never hurts more."""
    found, low, high = None, 0, len(_SEARCHED)
    while low < high:
        middle = (low + high) // 2
        result = work.pruned(_SEARCHED[middle])
        if work.job.holds(result.report.after):
            found, low = result, middle + 1
        else:
            high = middle
    if found is None:
        raise AccuracyError(
            f"the limit max_drop={work.job.max_drop} does not hold with {_SEARCHED[0]:.0%} pruned",
            "allow a larger max_drop, or fine-tune: finetune=",
        )
    return found
