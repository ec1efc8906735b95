"""Compiles a package's networks at fixed and at dynamic sizes and compares them with PyTorch.

A network is "right", "wrong" or of "lost sizes" (compiled without a dimension that was asked for), "refused by
torch.export", "refused" by this compiler with a reason, an "internal error", "unfinished" within its processor time, or
not "built" by its package at all.
"""

from __future__ import annotations

import inspect
import json
import re
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.coverage.models import relative_error
from tests.coverage.packages.model import PackageModel, takes_any_inputs

RIGHT, WRONG, LOST = "right", "wrong", "lost sizes"
EXPORT, REFUSED, INTERNAL, UNBUILT = "refused by torch.export", "refused", "internal error", "not built"
UNFINISHED = "unfinished"
FAILURES = (WRONG, LOST, INTERNAL, UNFINISHED)
TOLERANCE = 1e-3  # relative to the largest magnitude: outputs of nets with random weights are small differences
_MIN_CHANGE = 10 * TOLERANCE  # of results by other inputs
_TIMES_AS_LARGE = 2
_LONGEST = 700  # maximum length of a reason

_OWN_REFUSAL = re.compile(
    r"dynamic size \(node 'dimension (\d+) of ([a-zA-Z]\w*?)(?:_(\d+))?'\): an operator of the model"
)

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class SweepRow:
    """Outcome of a network.

    Attributes:
        dynamic: (input, axis) of the dimensions that are dynamic.
        detail: the reason of what failed, or why `torch.export` took no more dimensions.
    """

    name: str
    fixed: str
    dynamic_result: str = ""
    dynamic: tuple[tuple[int, int], ...] = ()
    error: float = 0.0
    seconds: float = 0.0
    detail: str = ""


def check_network(model: PackageModel, *, dynamic_first: bool = False) -> SweepRow:
    """Build, compile and compare one network, with as many of its dynamic dimensions as `torch.export` accepts.

    Args:
        dynamic_first: compile at fixed sizes only where dynamic ones are refused; `fixed` is empty otherwise.
    """
    import torch

    torch.manual_seed(0)
    start = time.process_time()
    try:
        net, inputs = model.build()
        if _draws(net.eval(), inputs):
            return SweepRow(model.name, UNBUILT, detail="it draws random numbers")
        if _vanishes(net, inputs):
            _calibrate(net, inputs)
            if _vanishes(net, inputs):
                return SweepRow(model.name, UNBUILT, detail="its results hardly depend on its inputs")
    except Exception as error:  # packages raise anything for unsupported configs and inputs
        return SweepRow(model.name, UNBUILT, detail=f"{type(error).__name__}: {str(error)[:200]}")
    if model.find is not None:
        dynamic, tied = model.find(inputs)
        model = replace(model, dynamic=dynamic, tied=tied)
    row = SweepRow(model.name, "")
    if dynamic_first and model.dynamic:
        row = _with_dynamic(row, net, inputs, model)
    if row.dynamic_result in ("", EXPORT, REFUSED):
        fixed, worst, detail = _compared(net, inputs, replace(model, dynamic=(), tied=()))
        row = replace(row, fixed=fixed, error=worst, detail=row.detail if fixed == RIGHT else detail)
    if row.fixed == RIGHT and model.dynamic and not row.dynamic_result:
        row = _with_dynamic(row, net, inputs, model)
    return replace(row, seconds=time.process_time() - start)


def where_stopped(error: BaseException) -> str:
    """The innermost lines of this compiler in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "site-packages" not in each.filename]
    return " < ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in reversed(own[-6:]))


def _draws(net: Any, inputs: Inputs) -> bool:
    """True if two runs differ."""
    import torch

    with torch.no_grad():
        runs = [net(*inputs), net(*inputs)]
    first, second = [each if isinstance(each, tuple | list) else (each,) for each in runs]
    return any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))


def _vanishes(net: Any, inputs: Inputs) -> bool:
    """True if other inputs give nearly the same results: comparing them would show nothing."""
    wanted, _ = _of_torch(net, inputs)
    found, refusal = _of_torch(net, tuple(each.flip(tuple(range(each.dim()))) for each in inputs))
    pairs = [(a.numpy(), b.numpy()) for a, b in zip(wanted, found, strict=False) if a.shape == b.shape]
    return not refusal and bool(pairs) and max(relative_error(a, b) for a, b in pairs) < _MIN_CHANGE


def _calibrate(net: Any, inputs: Inputs) -> None:
    """Set the statistics of batch normalization to those of the inputs: with random weights, values of deep networks
    vanish where they are those before training."""
    import torch

    norms = [each for each in net.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean of all batches
        module.train()
    with torch.no_grad():
        net(*inputs)
    net.eval()
    for module in norms:
        if module.running_var is not None:  # two nearly equal values in a channel would amplify any rounding
            module.running_var.clamp_(min=float(module.running_var.mean()) / 10)


def _with_dynamic(row: SweepRow, net: Any, inputs: Inputs, model: PackageModel) -> SweepRow:
    result, refusal, error = EXPORT, "", row.error
    while model.dynamic:
        result, found, detail = _compared(net, inputs, model)
        fixed = _fixed_axes(net, detail) if result in (EXPORT, REFUSED) else set()
        if result != EXPORT and not fixed:
            return replace(
                row,
                dynamic_result=result,
                dynamic=tuple(axis[:2] for axis in model.dynamic),
                error=max(error, found),
                detail=detail or refusal,
            )
        refusal = refusal or detail
        model = model.without(fixed or {model.dynamic[-1][:2]})
    return replace(row, dynamic_result=result, detail=refusal)


def _fixed_axes(net: Any, refusal: str) -> set[tuple[int, int]]:
    """(input, axis) of sizes that `torch.export` reports as fixed, or that a condition in the network fixes."""
    names = list(inspect.signature(net.forward).parameters)
    found = re.findall(r"L\['(\w+)'\](?:\[(\d+)\])?\.size\(\)\[(\d+)\]", refusal)
    found += [(name, place, axis) for axis, name, place in _OWN_REFUSAL.findall(refusal)]
    return {(int(place or names.index(name)), int(axis)) for name, place, axis in found}


def _compared(net: Any, inputs: Inputs, model: PackageModel) -> tuple[str, float, str]:
    """(result, error, detail) of one compilation, at the example's sizes and, for dynamic axes, at larger ones."""
    import compiler
    from compiler.errors import InternalError, InvalidModelError, TensorwrightError

    axes = model.dynamic
    options: dict[str, Any] = {}
    if axes:
        shapes = _dimensions(inputs, model)
        options["dynamic_shapes"] = (shapes,) if takes_any_inputs(net) else shapes
    try:
        module = compiler.compile(net, example_inputs=inputs, threads=1, progress=None, **options)
    except InvalidModelError as error:
        return EXPORT, 0.0, str(error)[:_LONGEST]
    except InternalError as error:
        return INTERNAL, 0.0, str(error)[:_LONGEST]
    except TensorwrightError as error:
        return REFUSED, 0.0, str(error)[:_LONGEST]
    except Exception as error:  # any exception other than the compiler's own errors is a defect
        return INTERNAL, 0.0, f"{type(error).__name__}: {str(error)[:_LONGEST]}"
    lost = [(place, axis) for place, axis, _ in axes if isinstance(module.inputs[place].shape[axis], int)]
    if lost:
        return LOST, 0.0, f"(input, axis) {lost} are fixed"
    worst = 0.0
    for given in [inputs, _larger(inputs, model)] if axes else [inputs]:
        wanted, refusal = _of_torch(net, given)
        sizes = [tuple(each.shape) for each in given]
        names = [spec.name for spec in module.inputs]
        try:
            found = list(module.run(dict(zip(names, (each.numpy() for each in given), strict=True))).values())
        except TensorwrightError as error:
            if refusal:
                return EXPORT, worst, f"the network does not run at {sizes}: {refusal}"
            # the example takes a branch, by sizes, that other sizes do not
            result = EXPORT if "a branch of the model" in str(error) else WRONG
            return result, worst, f"does not run at {sizes}: {str(error)[:200]}"
        if refusal:
            return WRONG, worst, f"runs at {sizes}, where the network does not: {refusal}"
        for ours, theirs in zip(found, wanted, strict=True):
            worst = max(worst, relative_error(np.asarray(ours), theirs.numpy()))
    return (RIGHT if worst <= TOLERANCE else WRONG), worst, ""


def _of_torch(net: Any, inputs: Inputs) -> tuple[Sequence[Any], str]:
    """The network's results, or the reason why it does not support these sizes."""
    import torch

    try:
        with torch.no_grad():
            results = net(*inputs)
    except (RuntimeError, ValueError, AssertionError) as error:
        return (), f"{type(error).__name__}: {str(error)[:200]}"
    return (results if isinstance(results, tuple | list) else (results,)), ""


def _dimensions(inputs: Inputs, model: PackageModel) -> tuple[dict[int, Any] | None, ...]:
    """`dynamic_shapes` for `torch.export`, which derives relations of sizes itself and refuses fixed ones."""
    from torch.export import Dim

    found: list[dict[int, Any]] = [{} for _ in inputs]
    for place, axis, _ in (*model.dynamic, *model.tied):
        found[place][axis] = Dim.DYNAMIC
    return tuple(each or None for each in found)


def _larger(inputs: Inputs, model: PackageModel) -> Inputs:
    """Inputs that are larger along the axes; integers stay in the example's range."""
    shapes = [list(each.shape) for each in inputs]
    for place, axis, step in model.dynamic:
        shapes[place][axis] += _TIMES_AS_LARGE * step
    for place, axis, number in model.tied:
        tied_to, its_axis, _ = model.dynamic[number]
        shapes[place][axis] = shapes[tied_to][its_axis]
    return tuple(_random(shape, like) for shape, like in zip(shapes, inputs, strict=True))


def _random(shape: list[int], like: Any) -> Any:
    """A tensor of a shape with the example's type and range; the example itself if it has that shape."""
    import torch

    if shape == list(like.shape):
        return like
    if like.is_floating_point():
        return torch.randn(shape, dtype=like.dtype)
    return torch.randint(int(like.min()), int(like.max()) + 1, shape, dtype=like.dtype)


def summary(rows: Sequence[SweepRow]) -> str:
    """Number of networks by outcome, at fixed and dynamic sizes."""
    fixed = Counter(row.fixed for row in rows if row.fixed)
    dynamic = Counter(row.dynamic_result for row in rows if row.dynamic_result)
    parts = [", ".join(f"{count} {name}" for name, count in each.most_common()) for each in (fixed, dynamic)]
    return f"fixed sizes: {parts[0]}; dynamic sizes: {parts[1] or 'none'}"


def write_rows(rows: Sequence[SweepRow], path: Path) -> None:
    """Write the table as JSON."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
