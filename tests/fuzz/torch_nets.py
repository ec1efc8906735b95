"""The torch suite: random PyTorch nets with dynamic dimensions, compared with eager PyTorch in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compiler.errors import UserError
from tests.fuzz.outcome import Outcome
from tests.fuzz.torch_functions import TEMPLATES, Random, discrete

_SIZES = (1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17)
_LARGEST = 1 << 14
# Chains of float32 operators, summed in another order; relative to the magnitude of the tensor.
_TOLERANCE = 2e-4


class Net(nn.Module):
    """Steps, each applied to the input or an earlier step's result. The last values are the results."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.sources: list[int] = []
        self.results: list[int] = []

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for source, step in zip(self.sources, self.steps, strict=True):
            values.append(step(values[source]))
        return tuple(values[index] for index in self.results)


def random_net(seed: int) -> tuple[Net, list[Tensor], set[int]]:
    """A net of 1 to 6 steps, an input for each of two runs, and the axes whose sizes differ between them."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    rank = int(random.integers(1, 6))
    shapes = [[int(random.choice(_SIZES if rank < 4 else _SIZES[:7])) for _ in range(rank)] for _ in range(2)]
    dynamic = {axis for axis in range(rank) if random.random() < (0.7 if axis == 0 else 0.25)}
    for axis in range(rank):
        if axis not in dynamic:
            shapes[1][axis] = shapes[0][axis]
        elif shapes[0][axis] == 1:  # torch.export treats a size of 1 as a constant
            shapes[0][axis] = 6
    inputs = [torch.randn(shape) for shape in shapes]
    net = Net().eval()
    values = [[each] for each in inputs]
    for _ in range(int(random.integers(1, 7))):
        _grow(net, values, random)
    read = set(net.sources)
    net.results = [index for index in range(1, len(values[0])) if index not in read] or [0]
    return net, inputs, {axis for axis in dynamic if shapes[0][axis] != shapes[1][axis]}


def _grow(net: Net, values: list[list[Tensor]], random: Random) -> None:
    """Append a step that works for the sizes of both runs, if one of a few attempts does."""
    for _ in range(12):
        source = int(random.integers(0, len(values[0])))
        example = values[0][source]
        if not example.is_floating_point():
            continue
        exact = source == 0 and random.random() < 0.2
        step = (discrete if exact else TEMPLATES[int(random.integers(len(TEMPLATES)))])(random, example)
        if step is None:
            continue
        try:
            with torch.no_grad():
                results = [step.eval()(each[source]) for each in values]
                copy.deepcopy(step).double()(example.double())
        except (RuntimeError, ValueError, IndexError, AssertionError):  # the shape does not fit
            continue
        if all(0 < result.numel() <= _LARGEST and result.ndim <= 6 for result in results):
            net.steps.append(step)
            net.sources.append(source)
            for each, result in zip(values, results, strict=True):
                each.append(result)
            return


def prepare(folder: Path, target: str = "host") -> str:
    """Return the target: each case makes its own net."""
    return target


def case(target: str, seed: int) -> Outcome:
    """Compile the net of a seed and compare each output at two sizes. A refusal is a gap, not a failure."""
    import compiler

    torch.set_num_threads(1)
    net, inputs, dynamic = random_net(seed)
    label = f"{len(net.steps)} steps, {'dynamic' if dynamic else 'fixed'}"
    sizes = dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC) or None
    try:
        module = compiler.compile(net, target, example_inputs=(inputs[0],), dynamic_shapes=(sizes,), threads=1)
        runs = [list(module.run([each]).values()) for each in inputs]
    except UserError as error:
        return Outcome("refused", label, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    for run, each in zip(runs, inputs, strict=True):
        wrong = next(filter(None, map(_difference, run, _expected(net, each))), None)
        if wrong is not None:
            return Outcome("wrong", label, f"at {tuple(each.shape)}: {wrong}")
    return Outcome("right", label)


def _expected(net: Net, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """PyTorch's results in float32 and in float64."""
    with torch.no_grad():
        return list(zip(net(x), copy.deepcopy(net).double()(x.double()), strict=True))


def _difference(ours: np.ndarray, theirs: tuple[Tensor, Tensor]) -> str | None:
    """The fault of an output, or None. If PyTorch's float32 differs from float64, so may ours."""
    single, double = (each.numpy() for each in theirs)
    if (ours.shape, ours.dtype) != (single.shape, single.dtype):
        return f"{ours.dtype}{ours.shape} instead of {single.dtype}{single.shape}"
    if ours.dtype.kind != "f":
        return None if np.array_equal(ours, single) else "different integers or booleans"
    if not np.array_equal(np.isfinite(ours), np.isfinite(single)):
        return "NaN or infinity at other indices"
    finite = np.isfinite(single)
    if not finite.any():
        return None
    scale = max(1.0, float(np.abs(double[finite]).max()))
    error, own = (float(np.abs(each[finite] - double[finite]).max()) / scale for each in (ours, single))
    return None if error <= max(_TOLERANCE, 8 * own) else f"relative error {error:.1e}"
