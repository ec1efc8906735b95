"""python -m benchmarks.calls: call overhead of a module, and of ONNX Runtime.

Nets of a few numbers, with fixed and symbolic sizes, with many inputs and many outputs; one thread. Each contestant
runs in its own process, alternating, and each number is the minimum: microseconds per call.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

# Inputs, outputs, and the batch: a number, or the name of a symbolic dimension.
CASES: dict[str, tuple[int, int, int | str]] = {
    "fixed": (1, 1, 1),
    "symbolic": (1, 1, "n"),
    "8 outputs": (1, 8, 1),
    "8 inputs": (8, 1, 1),
    "16 inputs, 4 outputs, symbolic": (16, 4, "n"),
}
CONTESTANTS = ("tensorwright", "onnxruntime")
ROUNDS, REPEATS, CALLS = 3, 30, 300
_WIDTH = 16
_OPERATORS = ("Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Exp", "Elu", "Softplus")


def main() -> None:
    """Print the table; with a folder and a contestant, measure only that one."""
    if len(sys.argv) == 3:
        for name in CASES:
            print(_measured(_call_of(sys.argv[2], Path(sys.argv[1]) / name), CASES[name][0]))
        return
    with TemporaryDirectory() as folder:
        _build(Path(folder))
        best = {contestant: [float("inf")] * len(CASES) for contestant in CONTESTANTS}
        for _ in range(ROUNDS):
            for contestant, times in best.items():
                command = [sys.executable, "-m", "benchmarks.calls", folder, contestant]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                best[contestant] = [min(pair) for pair in zip(times, map(float, done.stdout.split()), strict=True)]
    print(f"{'net':32} {'ours':>7} {'ONNX Runtime':>13}")
    for name, ours, other in zip(CASES, *best.values(), strict=True):
        print(f"{name:32} {ours:7.2f} {other:13.2f}")


def _build(folder: Path) -> None:
    import onnx

    import compiler

    for name, (inputs, outputs, batch) in CASES.items():
        model = _model(inputs, outputs, batch)
        onnx.save(model, str(folder / f"{name}.onnx"))
        compiler.compile(model, threads=1, progress=None).export(folder / f"{name}.twm")


def _model(inputs: int, outputs: int, batch: int | str) -> Any:
    """Create a model: the sum of the inputs, a matmul with it, and an activation for each output."""
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, _WIDTH])

    input_names, results = [f"x{n}" for n in range(inputs)], [f"y{n}" for n in range(outputs)]
    weight = np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH)).astype(np.float32)
    nodes = [helper.make_node("Sum", input_names, ["sum"]), helper.make_node("MatMul", ["sum", "w"], ["product"])]
    for place, name in enumerate(results):
        nodes.append(helper.make_node(_OPERATORS[place % len(_OPERATORS)], ["product"], [name]))
    initializers = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "net", list(map(tensor, input_names)), list(map(tensor, results)), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _call_of(contestant: str, path: Path) -> Callable[[dict[str, Any]], Any]:
    if contestant == "tensorwright":
        from compiler.runtime import load

        return load(f"{path}.twm", threads=1).run
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(f"{path}.onnx", options)
    return lambda inputs: session.run(None, inputs)


def _measured(call: Callable[[dict[str, Any]], Any], inputs: int) -> float:
    """Return microseconds per call, the minimum of many repeats."""
    feeds = {f"x{n}": np.ones((1, _WIDTH), np.float32) for n in range(inputs)}
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call(feeds)
        times.append((time.perf_counter() - start) / CALLS)
    return min(times) * 1e6


if __name__ == "__main__":
    main()
