"""The onnx package's node tests, run through the backend in worker processes."""

from __future__ import annotations

import multiprocessing as mp
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

_PLAIN = frozenset(
    ["float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)


@dataclass(frozen=True)
class Outcome:
    """Outcome of one test."""

    name: str
    operator: str
    status: str
    reason: str = ""
    plain: bool = True
    seconds: float = 0.0


def load_cases() -> dict[str, Any]:
    """All node tests of the installed onnx package, by name."""
    from onnx.backend.test.loader import load_node_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_node_model_tests()}


def is_plain(case: Any) -> bool:
    """True if all inputs and outputs are tensors of types that numpy has."""
    specs = [*case.model.graph.input, *case.model.graph.output]
    if any(spec.type.WhichOneof("value") != "tensor_type" for spec in specs):
        return False
    values = [value for inputs, outputs in case.data_sets for value in (*inputs, *outputs)]
    return all(isinstance(v, (np.ndarray, np.generic)) and v.dtype.name in _PLAIN for v in values)


def tested_operator(case: Any) -> str:
    """The operator under test: the only node, or the first part of the name if the test expands a function."""
    nodes = [node.op_type for node in case.model.graph.node]
    rest = [name for name in nodes if name not in ("Constant", "SequenceConstruct")]
    return rest[0] if len(set(rest)) == 1 else next(iter(rest), "")


def run_case(case: Any, engine_only: bool) -> tuple[str, str]:
    """(status, reason) of one test."""
    from compiler import onnx_backend
    from compiler.errors import InputValueRequiredError, UnsupportedModelError

    class Tested(onnx_backend.TensorwrightBackend):
        pass

    if engine_only:
        from tests.coverage.tvm_pipeline import import_and_build

        Tested.compile_model = staticmethod(import_and_build)
    try:
        prepared = Tested.prepare(case.model, "CPU")
        results = [(prepared.run([_array(v) for v in inputs]), outputs) for inputs, outputs in case.data_sets]
    except UnsupportedModelError as error:
        return "refused", "; ".join(sorted({f"{r.operator}: {r.reason}" for r in error.refusals}))
    except InputValueRequiredError as error:
        return "refused", error.message
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    for found, expected in results:
        difference = compare(found, expected, case.rtol, case.atol)
        if difference:
            return "wrong", difference
    return "pass", ""


def _array(value: Any) -> Any:
    import onnx

    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value


def compare(found: Sequence[Any], expected: Sequence[Any], rtol: float, atol: float) -> str:
    """The first difference between outputs, by the rules of onnx's own runner; empty if there is none."""
    if len(found) != len(expected):
        return f"{len(found)} outputs, not {len(expected)}"
    for index, (result, reference) in enumerate(zip(found, map(_array, expected), strict=True)):
        if not isinstance(reference, (np.ndarray, np.generic)):
            return f"output {index} is a tensor, not {type(reference).__name__}"
        if result.shape != reference.shape or result.dtype != reference.dtype:
            return f"output {index} is {result.dtype}{result.shape}, not {reference.dtype}{reference.shape}"
        tolerance = max(rtol, 2**-6) if result.dtype.name == "bfloat16" else rtol
        if result.dtype.kind not in "fiub":
            result, reference = result.astype(np.float32), reference.astype(np.float32)
        try:
            np.testing.assert_allclose(result, reference, rtol=tolerance, atol=atol)
        except AssertionError as error:
            return f"output {index}: " + " ".join(str(error).split())
    return ""


def _work(connection: Connection, engine_only: bool) -> None:
    os.environ["TVM_NUM_THREADS"] = "1"
    # TVM's messages on stderr do not belong to a test's report.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cases = load_cases()
    connection.send("ready")
    while (name := connection.recv()) is not None:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status, reason = run_case(cases[name], engine_only)
        connection.send((status, reason, time.perf_counter() - start))


class _Worker:
    """A process that runs one test at a time; it is replaced if it dies or hangs."""

    def __init__(self, engine_only: bool) -> None:
        context = mp.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_work, args=(child, engine_only), daemon=True)
        self.process.start()
        child.close()
        self.test: str | None = None
        self.started = time.monotonic()

    def give(self, test: str | None) -> None:
        self.test, self.started = test, time.monotonic()
        self.connection.send(test)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_all(
    names: Sequence[str], jobs: int, timeout: float, engine_only: bool
) -> Iterator[tuple[str, str, str, float]]:
    """Run tests in `jobs` processes; yield (name, status, reason, seconds) as they end."""
    waiting = list(names)[::-1]
    workers = [_Worker(engine_only) for _ in range(min(jobs, len(waiting)))]
    while workers:
        ready = wait([w.connection for w in workers], timeout=1.0)
        for worker in list(workers):
            died = False
            if worker.connection in ready:
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    died = True
                else:
                    if worker.test is not None:
                        yield (worker.test, *message)
                    worker.give(waiting.pop() if waiting else None)
                    if worker.test is None:
                        workers.remove(worker)
                    continue
            late = worker.test is not None and time.monotonic() - worker.started > timeout
            if died or late:
                if worker.test is not None:
                    yield worker.test, "crash", "the process died" if died else f"no answer in {timeout:.0f} s", timeout
                worker.stop()
                workers.remove(worker)
                if waiting:
                    workers.append(_Worker(engine_only))
