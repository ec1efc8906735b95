"""python -m benchmarks.numerics: rounding errors of float32 nets and of other runtimes against PyTorch in float64.

    python -m benchmarks.numerics                       # all PyTorch nets of the catalog, and chains of convolutions
    python -m benchmarks.numerics resnet18 chain --json FILE

Each cell is the root mean square of the error over that of the output, and the largest error over the largest output;
the last column is our root mean square over ONNX Runtime's. Chains are 3x3 convolutions with random weights,
SAME_UPPER: with ReLU, without, with weights and data of nonzero mean, and with different scales per channel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import compiler
from benchmarks._models import chosen_cases, model_task
from benchmarks.catalog import CATALOG, inputs_for
from compiler.profiling.contestant import CONTESTANTS

Array = np.ndarray
_PEERS = ("onnxruntime", "openvino")
_THREADS = 2
CHAINS = [(kind, depth, 64) for kind in ("relu", "linear", "means", "scales") for depth in (4, 16)]
"""Chains: kind, number of convolutions, channels."""


@dataclass(frozen=True)
class Error:
    """Root mean square and largest error, each relative to the output."""

    mean: float
    largest: float

    @staticmethod
    def of(found: Array, expected: Array) -> Error:
        """Return the error of a result against float64."""
        difference = found.astype(np.float64) - expected
        scale = math.sqrt(float((expected**2).mean()))
        largest = float(np.abs(difference).max() / np.abs(expected).max())
        return Error(math.sqrt(float((difference**2).mean())) / scale, largest)


@dataclass(frozen=True)
class Row:
    """One net: the error of its output by contestant."""

    net: str
    errors: dict[str, Error]

    @property
    def ratio(self) -> float:
        return self.errors["tensorwright"].mean / self.errors["onnxruntime"].mean


def main() -> int:
    """Parse the arguments, measure, print the table; exits with 1 if an error is above twice ONNX Runtime's."""
    chosen, path = chosen_cases("numerics", __doc__, _nets())
    names = ["tensorwright", *_PEERS]
    print("| net | " + " | ".join(names) + " | ratio |\n|---|" + "---|" * (len(names) + 1))
    rows = []
    for name, measure in chosen.items():
        row = Row(name, measure())
        rows.append(row)
        cells = " | ".join(f"{row.errors[each].mean:.1e}, {row.errors[each].largest:.1e}" for each in names)
        print(f"| {name} | {cells} | {row.ratio:.2f} |", flush=True)
    if path:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.ratio > 2 for row in rows))


def _nets() -> dict[str, Callable[[], dict[str, Error]]]:
    cases: dict[str, Callable[[], dict[str, Error]]] = {}
    for kind, depth, channels in CHAINS:
        cases[f"chain {kind}, {depth} of {channels} channels"] = partial(_of_chain, kind, depth, channels)
    torch_nets = (name for name, model in CATALOG.items() if model.reference == "torch")
    cases.update((name, partial(_of_catalog, name)) for name in torch_nets)
    return cases


def _of_catalog(name: str) -> dict[str, Error]:
    import torch

    model = CATALOG[name]
    inputs = inputs_for(model)
    net = model.load().double()
    given = [torch.from_numpy(each) for each in inputs.values()]
    with torch.no_grad():
        results = net(*(each.double() if each.is_floating_point() else each for each in given))
    first = results[0] if isinstance(results, list | tuple) else results
    return _errors(model_task(model).path, inputs, first.numpy())


def _of_chain(kind: str, depth: int, channels: int) -> dict[str, Error]:
    import torch

    rng = np.random.default_rng(depth)
    x = rng.standard_normal((1, channels, 40, 40)).astype(np.float32)
    x += np.float32(5) if kind == "means" else np.float32(0)
    nodes, weights, data = [], [], torch.from_numpy(x).double()
    for step in range(depth):
        weight = rng.standard_normal((channels, channels, 3, 3)) * math.sqrt(2 / (9 * channels))
        if kind == "means":
            weight += 0.2 * math.sqrt(2 / (9 * channels))
        if kind == "scales":
            weight *= np.exp(rng.standard_normal((channels, 1, 1, 1)))
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{step}"))
        source = f"x{step}"
        nodes.append(helper.make_node("Conv", [source, f"w{step}"], [f"c{step}"], auto_pad="SAME_UPPER"))
        nodes.append(helper.make_node("Relu" if kind == "relu" else "Identity", [f"c{step}"], [f"x{step + 1}"]))
        data = torch.nn.functional.conv2d(data, torch.from_numpy(weight.astype(np.float32)).double(), padding=1)
        data = data.relu() if kind == "relu" else data
    ends = [helper.make_tensor_value_info(each, TensorProto.FLOAT, x.shape) for each in ("x0", f"x{depth}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return _errors(path, {"x0": x}, data.numpy())


def _errors(path: Path, inputs: dict[str, Any], expected: Array) -> dict[str, Error]:
    """Return the error of the first output of each contestant, in float32."""
    shapes = {name: array.shape for name, array in inputs.items()}
    module = compiler.compile(path, shapes=shapes, threads=_THREADS, progress=None)
    outputs = {"tensorwright": next(iter(module.run(inputs).values()))}
    for peer in _PEERS:
        run, _ = CONTESTANTS[peer](str(path), [inputs], _THREADS, "f32")
        results = run(0)
        outputs[peer] = np.asarray(next(iter(results.values())) if isinstance(results, dict) else next(iter(results)))
    return {name: Error.of(result, expected) for name, result in outputs.items()}


if __name__ == "__main__":
    raise SystemExit(main())
