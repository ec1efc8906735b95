"""Time PyTorch on a pack's nets, at the same precision: eager, as a CUDA graph, and compiled (max-autotune).

    python3 -m benchmarks.gpu_pack.peers PACK RESULTS SECONDS [--only TEXT]

It is run by a pack's driver if python3 has torch, and needs nothing else. Each time is appended to the results at once;
existing results are not measured again. TF32 is off.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_pack.generator import integers, reals, seed_of
from benchmarks.gpu_pack.nets import NETS

TYPES = {"float32": torch.float32, "float16": torch.float16, "bf16": torch.bfloat16}
_SECONDS, _MIN_RUNS, _MAX_RUNS = 0.3, 5, 50  # like the driver's timing of ours
_COPIED = 1 << 30


@dataclass(frozen=True)
class Peer:
    """A contestant: `make` returns a function that launches it once."""

    entry: str
    name: str
    make: Callable[[str], Callable[[], Any]]


class Lines:
    """Appends lines to the results, flushed to disk."""

    def __init__(self, path: Path, pack: str) -> None:
        self._path = path
        self.known: set[tuple[str, str]] = set()
        current = pack
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            record = json.loads(line)
            current = record["pack"] if record["stage"] == "run" else current
            if current == pack and record["stage"] == "peer" and "ms" in record:
                self.known.add((record["entry"], record["peer"]))

    def add(self, **members: object) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(members) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def timed(run: Callable[[], Any], device: str) -> list[float]:
    """Return milliseconds of synchronized runs by the device's clock; the first runs are not counted."""
    cuda = device == "cuda"

    def once() -> float:
        if not cuda:
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    first = statistics.median(once() for _ in range(_MIN_RUNS))
    count = max(_MIN_RUNS, min(_MAX_RUNS, int(1e3 * _SECONDS / max(first, 1e-3))))
    return [once() for _ in range(count)]


def _inputs(name: str, kind: torch.dtype, device: str) -> list[torch.Tensor]:
    tensors = []
    for key, (shape, end) in NETS[name].inputs.items():
        count, seed = int(torch.Size(shape).numel()), seed_of(name, "input", key)
        drawn = reals(seed, count) if end is None else integers(seed, count, 0, end)
        tensor = torch.from_numpy(drawn.reshape(shape)).to(device)
        tensors.append(tensor if end is not None else tensor.to(kind))
    return tensors


def _net(name: str, precision: str, device: str) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    with torch.device(device):  # PyTorch's own weights: times do not depend on them
        net = NETS[name].build().eval().to(TYPES[precision])
    inputs = _inputs(name, TYPES[precision], device)
    if precision != "float32" and inputs[0].ndim == 4:  # the faster layout for tensor cores
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = [each.to(memory_format=torch.channels_last) for each in inputs]
    return net, inputs


def _single(entry: str, precision: str, device: str) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device)

    if entry.startswith("product"):
        size = int(entry.split("-")[1])
        if precision == "int8":
            x, w = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
            return torch._int_mm, [x, w.t().contiguous().t()]
        return torch.mm, [rows(size, size).to(TYPES[precision]), rows(size, size).to(TYPES[precision])]
    if entry.startswith("softmax"):
        return (lambda x: torch.softmax(x, -1)), [rows(65536, 1024)]
    return (lambda x, a, b: torch.relu(x * a + b)), [rows(65536, 1024), rows(1024), rows(1024)]


def _case(entry: str, device: str) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    name, _, precision = entry.rpartition("-")
    return _net(name, precision, device) if name in NETS else _single(entry, precision, device)


def eager(entry: str) -> Callable[[str], Callable[[], Any]]:
    def make(device: str) -> Callable[[], Any]:
        run, given = _case(entry, device)
        return lambda: run(*given)

    return make


def graph(entry: str) -> Callable[[str], Callable[[], Any]]:
    def make(device: str) -> Callable[[], Any]:
        run, inputs = _case(entry, device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            outputs = run(*inputs)

        def replay() -> Any:
            captured.replay()
            return outputs

        return replay

    return make


def compiled(entry: str) -> Callable[[str], Callable[[], Any]]:
    def make(device: str) -> Callable[[], Any]:
        run, given = _case(entry, device)
        fast = torch.compile(run, mode="max-autotune")
        return lambda: fast(*given)

    return make


_WAYS = {"eager": eager, "graph": graph, "compile": compiled}


def peers_of(entries: list[str]) -> Iterator[Peer]:
    """Return contestants, most important first: quick ones for all nets, then compilation, which takes a minute per
    net."""
    known = [each for each in entries if _is_known(each)]
    for kinds in (("eager", "graph"), ("compile",)):
        for entry in known:
            for kind in kinds:
                if not (entry.startswith("product") and kind != "eager"):
                    yield Peer(entry, kind, _WAYS[kind](entry))


def _is_known(entry: str) -> bool:
    name, _, precision = entry.rpartition("-")
    return (name in NETS and precision in TYPES) or entry.split("-")[0] in ("product", "elementwise", "softmax")


def facts(device: str) -> dict[str, Any]:
    """Measure the device's peaks: GB/s of a copy, read plus written, and TFLOP/s of matmuls."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = statistics.median(timed(lambda: target.copy_(source), device))
    rates = {}
    for precision in ("float32", "float16", "bf16", "int8"):
        run, given = _single("product-8192", precision, device)
        milliseconds = statistics.median(timed(functools.partial(run, *given), device))
        rates[precision] = 2 * 8192**3 / milliseconds / 1e9
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "copy_gb_s": 2 * _COPIED / copy / 1e6, "tflop_s": rates}


def main(arguments: list[str] | None = None, device: str = "cuda") -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="peers")
    parser.add_argument("pack", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    if device == "cuda" and not torch.cuda.is_available():
        print("torch sees no graphics processor: no times of PyTorch")
        return 0
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    about = json.loads((options.pack / "pack.json").read_text(encoding="utf-8"))
    lines = Lines(options.results, about["id"])
    if device == "cuda":
        lines.add(entry="", stage="facts", **facts(device))
    names = [each["name"] for each in about["entries"] if options.only in each["name"]]
    if left := sum(name.rpartition("-")[0] in NETS and name.endswith("-int8") for name in names):
        print(f"{left} nets in int8: PyTorch has none to compare with by itself")
    for peer in peers_of(names):
        if time.monotonic() > deadline:
            print(f"{peer.entry}, {peer.name} and what follows: no time left")
            break
        if (peer.entry, peer.name) not in lines.known and (device == "cuda" or peer.name == "eager"):
            _measure(peer, lines, device)
    return 0


def _measure(peer: Peer, lines: Lines, device: str) -> None:
    start = time.monotonic()
    record: dict[str, Any] = {"entry": peer.entry, "stage": "peer", "peer": peer.name}
    try:
        with torch.inference_mode():
            times = timed(peer.make(device), device)
        record["ms"] = statistics.median(times)
        print(f"{peer.entry}: torch {peer.name} {record['ms']:.3f} ms", flush=True)
    except Exception as error:  # of PyTorch: the others are timed
        record["problem"] = f"{type(error).__name__}: {error}"[:500]
        print(f"{peer.entry}: torch {peer.name} failed: {record['problem'][:200]}", flush=True)
    lines.add(**record, seconds=round(time.monotonic() - start, 2))
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
