"""python -m benchmarks.compile_time [CASE ...] [--nodes 10 100 1000] [--seconds 600] [--json FILE]

Processor seconds and memory of `compile` by the number of nodes of an ONNX graph, for several kinds of growing graphs.
Every measurement is a separate process with its own limit; a case stops at the first size beyond it. The last column
is the growth of seconds per node relative to the previous size, without the time of a graph with one node.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 8
NODES = (10, 100, 1000, 10_000, 100_000)
SECONDS = 600


class Graph:
    """Builder of an ONNX graph."""

    def __init__(self, *, dynamic: bool = False) -> None:
        from onnx import helper

        self._helper = helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.rows: int | str = "n" if dynamic else 16
        self._random = np.random.default_rng(0)

    def constant(self, value: Any) -> str:
        """Add a constant, and return its name."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int) -> str:
        """Add a constant of random numbers, and return its name."""
        return self.constant(self._random.standard_normal(shape).astype(np.float32) / np.float32(shape[-1] ** 0.5))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, and return the name of its first output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, inputs, [name], **attributes))
        return name

    def model(self, result: str, shape: list[int | str]) -> Any:
        """Return the model that computes `result` from the input "x"."""
        from onnx import TensorProto

        image = self._helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        graph = self._helper.make_graph(
            self.nodes, "graph", [image], [self._helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
        )
        graph.initializer.extend(self.constants)
        return self._helper.make_model(graph, opset_imports=[self._helper.make_opsetid("", 17)], ir_version=9)


def _chain(count: int, *, dynamic: bool = False) -> Any:
    graph, value = Graph(dynamic=dynamic), "x"
    for place in range(count):
        value = graph.add(("Tanh", "Sigmoid", "Softplus")[place % 3], value)
    return graph.model(value, [graph.rows, WIDTH])


def _layers(count: int, *, dynamic: bool = False) -> Any:
    graph, value = Graph(dynamic=dynamic), "x"
    for _ in range(max(count // 3, 1)):
        product = graph.add("MatMul", value, graph.weight(WIDTH, WIDTH))
        value = graph.add("Relu", graph.add("Add", product, graph.weight(WIDTH)))
    return graph.model(value, [graph.rows, WIDTH])


def _tree(count: int, *, dynamic: bool = False) -> Any:
    graph = Graph(dynamic=dynamic)
    level = [graph.add("Mul", "x", graph.weight(WIDTH)) for _ in range(max((count + 1) // 2, 1))]
    while len(level) > 1:
        pairs = [level[place : place + 2] for place in range(0, len(level), 2)]
        level = [graph.add("Max", *pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return graph.model(level[0], [graph.rows, WIDTH])


def _concat(count: int, *, dynamic: bool = False) -> Any:
    graph = Graph(dynamic=dynamic)
    parts = [graph.add("Mul", "x", graph.weight(WIDTH)) for _ in range(max(count - 1, 1))]
    return graph.model(graph.add("Concat", *parts, axis=1), [graph.rows, WIDTH])


def _selections(count: int, *, dynamic: bool = False) -> Any:
    """Concatenate the first rows above a limit in each column, whose numbers are computed, as detectors do by class."""
    graph = Graph(dynamic=dynamic)
    columns, axis, limit = max(count // 6, 1), graph.constant(np.array([0])), graph.constant(np.float32(0))
    begin, end = graph.constant(np.array([0])), graph.constant(np.array([12]))
    parts = []
    for place in range(columns):
        column = graph.add("Gather", "x", graph.constant(np.array(place)), axis=1)
        places = graph.add("Squeeze", graph.add("NonZero", graph.add("Greater", column, limit)), axis)
        parts.append(graph.add("Gather", column, graph.add("Slice", places, begin, end, axis)))
    return graph.model(graph.add("Concat", *parts, axis=0), [graph.rows, columns])


def _slices(count: int, *, dynamic: bool = False) -> Any:
    graph = Graph(dynamic=dynamic)
    steps, axis = max(count // 2, 1), graph.constant(np.array([1]))
    total = graph.constant(np.zeros((1, 1), np.float32))
    for place in range(steps):
        ends = [graph.constant(np.array([place + each])) for each in (0, 1)]
        total = graph.add("Add", total, graph.add("Slice", "x", *ends, axis))
    return graph.model(total, [graph.rows, steps])


def _recurrence(count: int, *, dynamic: bool = False) -> Any:
    graph, steps = Graph(dynamic=dynamic), max(count // 5, 1)
    state_weight, step_weight = graph.weight(WIDTH, WIDTH), graph.weight(WIDTH, WIDTH)
    state = graph.constant(np.zeros((1, WIDTH), np.float32))
    for place in range(steps):
        step = graph.add("Gather", "x", graph.constant(np.array(place)), axis=0)
        product = graph.add("MatMul", state, state_weight)
        state = graph.add("Tanh", graph.add("Add", product, graph.add("MatMul", step, step_weight)))
    return graph.model(state, [steps, graph.rows, WIDTH])


def _unet(count: int, *, dynamic: bool = False) -> Any:
    """Add U-Nets of four levels, one after another."""
    graph, value = Graph(dynamic=dynamic), "x"
    for _ in range(max(count // 24, 1)):
        skips = []
        for _ in range(4):
            value = graph.add("Relu", graph.add("Conv", value, graph.weight(WIDTH, WIDTH, 3, 3), pads=[1] * 4))
            skips.append(value)
            value = graph.add("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
        scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
        for skipped in reversed(skips):
            value = graph.add("Concat", graph.add("Resize", value, "", scales, mode="nearest"), skipped, axis=1)
            value = graph.add("Conv", value, graph.weight(WIDTH, 2 * WIDTH, 1, 1))
    return graph.model(value, [graph.rows if dynamic else 1, WIDTH, 16, 16])


CASES: dict[str, Callable[..., Any]] = {
    "chain": _chain,
    "layers": _layers,
    "tree": _tree,
    "concat": _concat,
    "selections": _selections,
    "slices": _slices,
    "recurrence": _recurrence,
    "unet": _unet,
}


def main() -> None:
    """Print the table of all cases, with fixed and with dynamic sizes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_time", description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all unless given")
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit of processor seconds per compilation")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        case, count, dynamic = options.measure
        print(json.dumps(_measured(case, int(count), dynamic == "dynamic")))
        return
    rows = []
    print(f"{'graph':12} {'sizes':8} {'nodes':>7} {'seconds':>8} {'MiB':>6} {'growth per node':>16}")
    for case in options.cases or CASES:
        for sizes in ("fixed", "dynamic"):
            rows += _grown(case, sizes, options.nodes, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _grown(case: str, sizes: str, counts: list[int], limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    least = _run(case, 1, sizes, limit)
    for count in counts:
        row = {"graph": case, "sizes": sizes, "nodes": count, **_run(case, count, sizes, limit)}
        rows.append(row)
        if "error" in row:
            print(f"{case:12} {sizes:8} {count:7} {row['error']}", flush=True)
            break
        growth = ""
        if len(rows) > 1:
            each = [max(r["seconds"] - least.get("seconds", 0), 0.01) / r["nodes"] for r in rows[-2:]]
            growth = f"{each[1] / each[0]:.2f}"
        print(f"{case:12} {sizes:8} {row['nodes']:7} {row['seconds']:8.1f} {row['mib']:6} {growth:>16}", flush=True)
    return rows


def _run(case: str, count: int, sizes: str, limit: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.compile_time", "--measure", case, str(count), sizes]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        beyond = done.returncode in (-9, -24)  # killed by the limit
        return {"error": f"more than {limit} s" if beyond else lines[-1][:200] if lines else f"rc {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _measured(case: str, count: int, dynamic: bool) -> dict[str, Any]:
    import compiler

    model = CASES[case](count, dynamic=dynamic)
    before = _seconds()
    compiler.compile(model, threads=1, progress=None)
    spent = _seconds() - before
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"nodes": len(model.graph.node), "seconds": round(spent, 2), "mib": peak // 1024}


def _seconds() -> float:
    """Return processor seconds of this process and its children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
