"""A contestant's process: loads a model, then answers each line "SECONDS" on standard input with the times of its runs
(elapsed and processor seconds), as JSON. Started by `race`.

Runs cycle through the given examples: with a single one, the processor would learn its data-dependent branches, which
it cannot do for values that it has not seen."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

Array = np.ndarray
Examples = Sequence[Mapping[str, Array]]
Run = Callable[[int], Any]  # called with the index of an example
MIN_RUNS = 3


def tensorwright(path: str, examples: Examples, threads: int, precision: str) -> tuple[Run, str]:
    """A compiled module; `path` is a .twm file, and the caller decides how it was compiled."""
    from compiler.runtime import load

    module = load(path)
    module.threads = threads
    return lambda index: list(module.run(examples[index]).values()), f"tensorwright {version('tensorwright')}"


def onnxruntime(path: str, examples: Examples, threads: int, precision: str) -> tuple[Run, str]:
    """ONNX Runtime on its CPU provider, with all optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    feeds = [{name: array for name, array in each.items() if name in wanted} for each in examples]
    return lambda index: session.run(None, feeds[index]), f"onnxruntime {ort.__version__}"


def openvino(path: str, examples: Examples, threads: int, precision: str) -> tuple[Run, str]:
    """OpenVINO with the latency hint, at the given precision ("default" leaves it to OpenVINO), with static shapes."""
    return _openvino(path, examples, threads, precision, fixed=True)


def openvino_dynamic(path: str, examples: Examples, threads: int, precision: str) -> tuple[Run, str]:
    """OpenVINO with the sizes that the file leaves dynamic."""
    return _openvino(path, examples, threads, precision, fixed=False)


def _openvino(path: str, examples: Examples, threads: int, precision: str, *, fixed: bool) -> tuple[Run, str]:
    import openvino as ov

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    if precision != "default":
        config["INFERENCE_PRECISION_HINT"] = precision
    model = ov.Core().read_model(path)
    shapes = {}
    for port in model.inputs:
        name = next(each for each in port.get_names() if each in examples[0])
        shapes[name] = list(examples[0][name].shape)
    if fixed:
        model.reshape(shapes)
    compiled = ov.Core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    feeds = [{name: each[name] for name in shapes} for each in examples]

    def run(index: int) -> Any:
        results = request.infer(feeds[index])
        return [np.asarray(results[port]) for port in compiled.outputs]

    return run, f"openvino {version('openvino')}"


Contestant = Callable[[str, Examples, int, str], tuple[Run, str]]
CONTESTANTS: dict[str, Contestant] = {
    "tensorwright": tensorwright,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-dynamic": openvino_dynamic,
}


def main(contestants: Mapping[str, Contestant] = CONTESTANTS) -> int:
    """Load, report readiness, then serve rounds until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=contestants)
    parser.add_argument("path")
    parser.add_argument("arrays", nargs="+", help=".npz files of inputs, all of the same shapes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--outputs", help="write the outputs of the first run to this .npz file")
    options = parser.parse_args()
    examples = [_inputs(path) for path in options.arrays]
    start = time.perf_counter()
    run, label = contestants[options.contestant](options.path, examples, options.threads, options.precision)
    outputs = run(0)
    loaded = time.perf_counter() - start
    if options.outputs:
        np.savez(options.outputs, *outputs)
    print(json.dumps({"version": label, "load_seconds": loaded}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_round(run, len(examples), float(line))), flush=True)
    return 0


def _inputs(path: str) -> dict[str, Array]:
    with np.load(path) as stored:
        return {name: np.asarray(stored[name], order="C") for name in stored.files}  # scalars stay scalars


def _round(run: Run, examples: int, seconds: float) -> list[tuple[float, float]]:
    """(elapsed, processor) seconds of each run."""
    for _ in range(2):  # wake the threads, load the weights
        run(0)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        index = len(times) % examples
        start, used = time.perf_counter(), time.process_time()
        run(index)
        times.append((time.perf_counter() - start, time.process_time() - used))
    return times


if __name__ == "__main__":
    sys.exit(main())
