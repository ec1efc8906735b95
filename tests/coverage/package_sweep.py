"""Compiles networks of a package at fixed and at dynamic sizes and compares them with PyTorch.

A network is "right", "wrong" or of "lost sizes" (compiled without a dimension that was asked for), "refused by
torch.export", "refused" by this compiler with a reason, an "internal error", or not "built" by its package at all.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.coverage.models import relative_error
from tests.coverage.package_models import PackageModel

RIGHT, WRONG, LOST = "right", "wrong", "lost sizes"
EXPORT, REFUSED, INTERNAL, UNBUILT = "refused by torch.export", "refused", "internal error", "not built"
FAILURES = (WRONG, LOST, INTERNAL)
TOLERANCE = 1e-3  # of the largest magnitude: nets of random weights, whose outputs are small differences
_TIMES_AS_LARGE = 2


@dataclass(frozen=True)
class SweepRow:
    """How a network fares; `dynamic` holds the axes that are dynamic."""

    name: str
    fixed: str
    dynamic_result: str = ""
    dynamic: tuple[int, ...] = ()
    error: float = 0.0
    seconds: float = 0.0
    detail: str = ""


def check_network(model: PackageModel) -> SweepRow:
    """Build, compile and compare one network; with as many of its dynamic dimensions as `torch.export` takes."""
    import torch

    torch.manual_seed(0)
    start = time.process_time()
    try:
        net, inputs = model.build()
    except Exception as error:  # whatever a package raises for a config that it does not take
        return SweepRow(model.name, UNBUILT, detail=f"{type(error).__name__}: {str(error)[:200]}")
    net = net.eval()
    fixed, worst, detail = _compared(net, inputs, None)
    row = SweepRow(model.name, fixed, error=worst, detail=detail)
    if fixed == RIGHT:
        row = _with_dynamic(row, net, inputs, model)
    return replace(row, seconds=time.process_time() - start)


def _with_dynamic(row: SweepRow, net: Any, inputs: tuple[Any, ...], model: PackageModel) -> SweepRow:
    result, detail, error = EXPORT, "", row.error
    for count in range(len(model.dynamic), 0, -1):
        axes = model.dynamic[:count]
        result, found, detail = _compared(net, inputs, axes)
        if result != EXPORT:
            return replace(
                row,
                dynamic_result=result,
                dynamic=tuple(axis for axis, _ in axes),
                error=max(error, found),
                detail=detail,
            )
    return replace(row, dynamic_result=result, detail=detail)


def _compared(net: Any, inputs: tuple[Any, ...], axes: Sequence[tuple[int, int]] | None) -> tuple[str, float, str]:
    """(result, error, detail) of one compilation, at the example's sizes and, with dynamic axes, at larger ones."""
    import torch

    import compiler
    from compiler.errors import InternalError, InvalidModelError, TensorwrightError

    options: dict[str, Any] = {}
    if axes is not None:
        sizes = {axis: _dimension(axis, step) for axis, step in axes}
        options["dynamic_shapes"] = (sizes, *[None] * (len(inputs) - 1))
    try:
        module = compiler.compile(net, example_inputs=inputs, threads=1, progress=None, **options)
    except InvalidModelError as error:
        return EXPORT, 0.0, str(error)[:300]
    except InternalError as error:
        return INTERNAL, 0.0, str(error)[:300]
    except TensorwrightError as error:
        return REFUSED, 0.0, str(error)[:300]
    except Exception as error:  # what is no error of the compiler's own is a defect
        return INTERNAL, 0.0, f"{type(error).__name__}: {str(error)[:300]}"
    shape = module.inputs[0].shape
    if axes is not None and any(isinstance(shape[axis], int) for axis, _ in axes):
        return LOST, 0.0, f"compiled for {shape}"
    worst = 0.0
    for given in [inputs] if axes is None else [inputs, _larger(inputs, axes)]:
        with torch.no_grad():
            expected = net(*given)
        wanted = expected if isinstance(expected, tuple | list) else (expected,)
        names = [spec.name for spec in module.inputs]
        try:
            found = list(module.run(dict(zip(names, (each.numpy() for each in given), strict=True))).values())
        except TensorwrightError as error:
            return WRONG, worst, f"does not run at {tuple(given[0].shape)}: {str(error)[:200]}"
        for ours, theirs in zip(found, wanted, strict=True):
            worst = max(worst, relative_error(np.asarray(ours), theirs.numpy()))
    return (RIGHT if worst <= TOLERANCE else WRONG), worst, ""


def _dimension(axis: int, step: int) -> Any:
    from torch.export import Dim

    size = Dim(f"size{axis}", min=1, max=1 << 12)
    return step * size if step > 1 else size


def _larger(inputs: tuple[Any, ...], axes: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    """Inputs whose first has more along the axes; those of other shapes that follow it are the caller's matter."""
    import torch

    shape = list(inputs[0].shape)
    for axis, step in axes:
        shape[axis] = shape[axis] + _TIMES_AS_LARGE * step
    first = inputs[0]
    larger = torch.randn(shape) if first.is_floating_point() else torch.randint(1, 100, shape)
    return (larger, *inputs[1:])


def summary(rows: Sequence[SweepRow]) -> str:
    """How many networks fared how, at fixed and at dynamic sizes."""
    fixed = Counter(row.fixed for row in rows)
    dynamic = Counter(row.dynamic_result for row in rows if row.dynamic_result)
    parts = [", ".join(f"{count} {name}" for name, count in each.most_common()) for each in (fixed, dynamic)]
    return f"fixed sizes: {parts[0]}; dynamic sizes: {parts[1] or 'none'}"


def write_rows(rows: Sequence[SweepRow], path: Path) -> None:
    """The table for a machine."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
