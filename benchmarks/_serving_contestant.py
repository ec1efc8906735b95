"""One contestant of `benchmarks.serving` in its own process: `python -m benchmarks._serving_contestant JSON`.

Prints one line of JSON. Closed loops keep a number of single-row requests in flight; open loops send them at random
times with a given rate, regardless of answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._serving_models import example

# Without a precision hint it computes in bfloat16 if the processor supports it; all others compute in float32.
_OPENVINO = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}

Infer = Callable[[], Awaitable[Any]]


def closed_loop_of_threads(run: Callable[[], Any], connections: int, seconds: float) -> dict[str, float]:
    """Return requests per second of threads that call a function."""
    import threading

    counts = [0] * connections
    until = time.perf_counter() + seconds

    def client(index: int) -> None:
        while time.perf_counter() < until:
            run()
            counts[index] += 1

    threads = [threading.Thread(target=client, args=(index,)) for index in range(connections)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"per_second": sum(counts) / (time.perf_counter() - begin)}


def onnx_runtime(folder: Path, model: str, connections: int, seconds: float) -> dict[str, float]:
    """ONNX Runtime, one thread per run, called by one thread per connection."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / f"{model}.onnx"), options)
    inputs = example(model)
    return closed_loop_of_threads(lambda: session.run(None, inputs), connections, seconds)


def openvino(folder: Path, model: str, connections: int, seconds: float) -> dict[str, float]:
    """OpenVINO's AsyncInferQueue, set for throughput, with one request per connection."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(str(folder / f"{model}.onnx"), "CPU", _OPENVINO)
    queue = openvino.AsyncInferQueue(compiled, connections)
    inputs = example(model)
    for _ in range(2 * connections):
        queue.start_async(inputs)
    queue.wait_all()
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        queue.start_async(inputs)
        count += 1
    queue.wait_all()
    return {"per_second": count / (time.perf_counter() - begin)}


async def _batcher(folder: Path, model: str, batched: bool = True) -> Any:
    from compiler.serving.batching.batcher import Batcher
    from compiler.serving.batching.module_service import ModuleService, load_proven
    from compiler.serving.batching.planner import BatchOptions

    service = ModuleService(load_proven(folder / f"{model}.twm"), model, batched=batched)
    made = Batcher(service, BatchOptions(max_queue=1 << 20, enabled=batched))
    await made.start()
    return made


async def _ours(folder: Path, model: str, connections: int, seconds: float) -> dict[str, float]:
    from compiler.serving.request import Request

    batcher = await _batcher(folder, model)
    request, count = Request(example(model)), 0

    async def client(until: float) -> None:
        nonlocal count
        while time.perf_counter() < until:
            await batcher.infer(request)
            count += 1

    await asyncio.gather(*(client(time.perf_counter() + seconds / 4) for _ in range(connections)))
    count, begin = 0, time.perf_counter()
    await asyncio.gather(*(client(begin + seconds) for _ in range(connections)))
    took = time.perf_counter() - begin
    await batcher.close()
    return {"per_second": count / took}


async def _open_loop(
    folder: Path, model: str, rate: float, seconds: float, batched: bool, sla: float | None
) -> dict[str, float]:
    """Return latencies in milliseconds, from the time when each request was due; with an SLA (ms), also refusals."""
    from compiler.errors import OverloadedError
    from compiler.serving.request import Request

    batcher = await _batcher(folder, model, batched)
    inputs = example(model)
    for count in (1, 2, 4, 8, 16, 32) * 2:
        await asyncio.gather(*(batcher.infer(Request(inputs)) for _ in range(count)))
    served: list[float] = []
    refused: list[float] = []

    async def ask(due: float) -> None:
        arrival = time.monotonic()
        deadline = None if sla is None else arrival + sla / 1000
        try:
            await batcher.infer(Request(inputs, arrival=arrival, deadline=deadline))
        except OverloadedError:
            refused.append(1000 * (time.monotonic() - arrival))
        else:
            served.append(1000 * (time.monotonic() - (due if sla is None else arrival)))

    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))
    due, tasks = time.monotonic(), []
    for gap in gaps:
        due += gap
        wait = due - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.ensure_future(ask(due)))
    await asyncio.gather(*tasks)
    await batcher.close()
    summary = {
        "p50": float(np.percentile(served, 50)),
        "p99": float(np.percentile(served, 99)),
        "served": len(served) / len(gaps),
    }
    if sla is not None:
        summary |= {
            "within": sum(each <= sla for each in served) / len(served),
            "refused_p99": float(np.percentile(refused, 99)) if refused else 0.0,
            "refused_within_10ms": sum(each <= 10 for each in refused) / max(1, len(refused)),
        }
    return summary


def main() -> None:
    """Run the contestant in the argument."""
    spec = json.loads(sys.argv[1])
    kind, folder, model, seconds = spec["kind"], Path(spec["folder"]), spec["model"], spec["seconds"]
    if kind in ("onnxruntime", "openvino"):
        function = onnx_runtime if kind == "onnxruntime" else openvino
        result = function(folder, model, spec["connections"], seconds)
    elif kind == "ours":
        result = asyncio.run(_ours(folder, model, spec["connections"], seconds))
    else:
        result = asyncio.run(_open_loop(folder, model, spec["rate"], seconds, spec["batched"], spec.get("sla")))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
