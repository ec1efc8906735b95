"""python -m benchmarks.serving [FOLDER] [--rounds N] [--seconds S] [--ray-python FILE] [--json FILE]

Throughput and latency of servers.

One run with several rounds, contestants alternating, each in its own process:

- MiniLM (32 tokens) at 8 connections and a tiny net at 32: our server over HTTP; our batcher, ONNX Runtime and OpenVINO
  in process; Triton with our backend and with ONNX Runtime, if tests/system/install_triton.sh has installed it;
- the 99th percentile at 80 % load, batched and first-in-first-out, for MiniLM (whose rows cost the same in a batch) and
  for a net with 100 MB of weights, which a batch reads once;
- three times overload with a deadline: accepted requests in time, and the time of refusals;
- the same for a minute over HTTP (`benchmarks.serving_overload`);
- cascades and int8 variants at the large model's accuracy (`benchmarks.cascades`);
- seconds from the command to the first answer.

Finally, each figure with its goal. Everything takes about 15 minutes on two idle cores.

Needs wrk (apt-get install wrk), onnxruntime and openvino. Models are built into FOLDER the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._serving_models import build
from benchmarks._serving_summary import TRITON, print_summary
from benchmarks._wrk import load
from benchmarks.triton import triton_contestants
from targets.processors import usable_cores

CELLS = (("minilm", 8), ("tiny", 32))
OPEN_CELLS = (("minilm", 8), ("wide", 32))  # and the concurrent requests at which their capacity is measured
SLA_MS = 100.0
Servers = dict[str, Callable[[], AbstractContextManager[int]]]
_IN_PROCESS = ("ours", "onnxruntime", "openvino")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/serving-models"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--only", choices=list(_PARTS), help="only this part; others stay as in --json")
    parser.add_argument("--ray-python", type=Path, help="an interpreter with Ray, for the server on Ray Serve")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("needs wrk: apt-get install wrk")
    build(options.folder)
    results: dict[str, Any] = {}
    if options.only and options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    parts = [options.only] if options.only else list(_PARTS)
    for part in parts:
        results |= _PARTS[part](options, results)
    _print(results)
    print_summary(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _contestant(**given: object) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks._serving_contestant", json.dumps(given)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result: dict[str, float] = json.loads(said.splitlines()[-1])
    return result


def _throughput(options: argparse.Namespace, found: Mapping[str, Any]) -> dict[str, Any]:
    """Measure requests per second by model and contestant, one number per round."""
    folder, seconds = options.folder, options.seconds
    rounds: dict[str, dict[str, list[float]]] = {model: {} for model, _ in CELLS}
    with TemporaryDirectory() as scratch:
        servers = {**_own_servers(folder, options.ray_python), **triton_contestants(folder, Path(scratch))}
        for _ in range(options.rounds):
            for name, server in servers.items():
                with server() as port:
                    for model, connections in CELLS:
                        load(port, model, connections, 1, Path(scratch))
                        result = load(port, model, connections, seconds, Path(scratch)).per_second
                        rounds[model].setdefault(name, []).append(result)
            for kind in _IN_PROCESS:
                for model, connections in CELLS:
                    given = {"folder": str(folder), "connections": connections, "seconds": seconds}
                    result = _contestant(kind=kind, model=model, **given)["per_second"]
                    rounds[model].setdefault(f"{kind} in process", []).append(result)
    return {"throughput": rounds}


def _own_servers(folder: Path, ray_python: Path | None) -> Servers:
    """Yield our server with one worker, and with one per core, standalone and on Ray."""

    @contextmanager
    def served(workers: int) -> Iterator[int]:
        with embedded(folder, "--workers", str(workers)) as (port, _):
            yield port

    @contextmanager
    def on_ray() -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as free:  # Ray's proxies take no port 0
            port = free.getsockname()[1]
        flags = ("--engine", "ray", "--workers", str(cores), "--port", str(port))
        with embedded(folder, *flags, python=str(ray_python)):
            yield port

    cores = usable_cores()
    servers: Servers = {
        f"ours over HTTP, {count} worker{'s' * (count > 1)}": partial(served, count) for count in {1, cores}
    }
    return servers if ray_python is None else {**servers, "ours on Ray Serve": on_ray}


@contextmanager
def embedded(folder: Path, *flags: str, python: str = sys.executable) -> Iterator[tuple[int, int]]:
    """Run our server; yield its port and process id."""
    command = [python, "-m", "compiler.cli", "serve", "--port", "0", *flags]
    command += [f"{model}={folder / model}.twm" for model, _ in CELLS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(re.findall(r":(\d+)$", process.stdout.readline().strip())[0]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _ready(options: argparse.Namespace, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"ready_seconds": min(_ready_seconds(options.folder) for _ in range(options.rounds))}


def _ready_seconds(folder: Path) -> float:
    """Return seconds from the start of the command to the first answer, with only MiniLM."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "compiler.cli", "serve", str(folder / "minilm.twm"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - begin
        os.kill(process.pid, signal.SIGTERM)
        process.wait()
    return seconds


def _open_loops(options: argparse.Namespace, found: Mapping[str, Any]) -> dict[str, Any]:
    """Measure at 80 % of the capacity, batched and not; and MiniLM at 300 % with a deadline."""
    common = {"folder": str(options.folder), "seconds": options.seconds}
    at_80 = {}
    for model, connections in OPEN_CELLS:
        capacity = _contestant(kind="ours", model=model, connections=connections, **common)["per_second"]
        at_80[model] = _at_80_percent(options.rounds, {"rate": 0.8 * capacity, "model": model, **common})
    capacity = at_80["minilm"]["rate"] / 0.8
    given = {"kind": "open", "model": "minilm", "rate": 3 * capacity, "batched": True, "sla": SLA_MS, **common}
    overload = [_contestant(**given) for _ in range(options.rounds)]
    return {"at_80_percent": at_80, "overload": max(overload, key=lambda each: each["within"])}


def _at_80_percent(rounds: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best round of each, and the ratios of the 99th percentiles in all rounds."""
    alike: dict[str, list[dict[str, float]]] = {"batched": [], "first in first out": []}
    for _ in range(rounds):
        for name, results in alike.items():
            results.append(_contestant(kind="open", batched=name == "batched", **settings))
    pairs = zip(*alike.values(), strict=True)
    ratios = sorted(batched["p99"] / alone["p99"] for batched, alone in pairs)
    best = {name: min(results, key=_p99) for name, results in alike.items()}
    return {"rate": settings["rate"], "p99_ratios": ratios, **best}


def _minute(options: argparse.Namespace, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"minute": _said("benchmarks.serving_overload", str(options.folder))}


def _cascades(options: argparse.Namespace, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"cascades": _said("benchmarks.cascades")}


def _said(command: str, *arguments: str) -> object:
    """Return the JSON written by another benchmark command."""
    with TemporaryDirectory() as made:
        file = Path(made) / "found.json"
        subprocess.run(
            [sys.executable, "-m", command, *arguments, "--json", str(file)], stdout=subprocess.DEVNULL, check=True
        )
        content: object = json.loads(file.read_text())
    return content


_PARTS: dict[str, Callable[[argparse.Namespace, Mapping[str, Any]], dict[str, Any]]] = {
    "throughput": _throughput,
    "ready": _ready,
    "open": _open_loops,
    "minute": _minute,
    "cascades": _cascades,
}


def _p99(found: dict[str, float]) -> float:
    return found["p99"]


def _print(results: Mapping[str, Any]) -> None:
    for model, connections in CELLS if "throughput" in results else ():
        _print_throughput(f"{model}, {connections} connections", results["throughput"][model])
    if "at_80_percent" in results:
        for model, _ in OPEN_CELLS:
            _print_at_80_percent(model, results["at_80_percent"][model])
        _print_overload(results["overload"])
    if "ready_seconds" in results:
        print(f"\nready after {results['ready_seconds']:.2f} s (MiniLM)")


def _print_throughput(title: str, contestants: Mapping[str, list[float]]) -> None:
    """Print the best of the rounds, their ratio, and the median of the ratios within a round."""
    in_process = {name: values for name, values in contestants.items() if name.endswith("in process")}
    references = {"best in process": max(in_process.values(), key=max)}
    if TRITON in contestants:
        references["Triton, ours"] = contestants[TRITON]
    print(f"\n{title:32}{'requests/s':>12}" + "".join(f"{'/ ' + name + ' (median)':>30}" for name in references))
    for name, values in sorted(contestants.items(), key=lambda each: -max(each[1])):
        line = f"  {name:30}{max(values):12.0f}"
        for reference in references.values():
            of_rounds = median(map(truediv, values, reference))
            line += f"{max(values) / max(reference):21.2f} ({of_rounds:6.2f})"
        print(line)


def _print_at_80_percent(model: str, at_80: Mapping[str, Any]) -> None:
    print(f"\n{model} at 80 % load, {at_80['rate']:.0f} requests/s, in process: p50 and p99 in ms")
    for name in ("batched", "first in first out"):
        print(f"  {name:30}{at_80[name]['p50']:12.1f}{at_80[name]['p99']:12.1f}")
    print(f"  p99, batched / first in first out: {', '.join(f'{each:.2f}' for each in at_80['p99_ratios'])}")


def _print_overload(overload: Mapping[str, float]) -> None:
    print(f"\nMiniLM at 3 times the capacity, deadline {SLA_MS:.0f} ms")
    print(f"  accepted {overload['served']:.0%}, of these in time {overload['within']:.1%}")
    print(f"  refused within 10 ms {overload['refused_within_10ms']:.1%}, p99 {overload['refused_p99']:.1f} ms")


if __name__ == "__main__":
    main()
