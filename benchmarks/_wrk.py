"""The load generator wrk (apt-get install wrk), for servers of the Open Inference Protocol."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._serving_models import example

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_TYPES = {"f": "FP32", "i": "INT64"}


@dataclass(frozen=True)
class Load:
    """Requests per second, and latencies in milliseconds."""

    per_second: float
    p50: float
    p99: float


def load(port: int, model: str, connections: int, seconds: int, folder: Path) -> Load:
    """Send single-row JSON requests, one at a time per connection; `folder` is for wrk's script.

    Raises RuntimeError if a request failed.
    """
    ((name, array),) = example(model).items()
    tensor = {"name": name, "datatype": _TYPES[array.dtype.kind], "shape": list(array.shape)}
    body = json.dumps({"inputs": [{**tensor, "data": array.ravel().tolist()}]})
    script = folder / f"{model}.lua"
    header = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
    script.write_text(f"{header}wrk.body = [[{body}]]\n")
    url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"requests failed: {output}")
    per_second = float(_found(r"Requests/sec:\s+([\d.]+)", output)[0])
    return Load(per_second, _milliseconds(output, 50), _milliseconds(output, 99))


def _milliseconds(said: str, share: int) -> float:
    number, unit = _found(rf"{share}%\s+([\d.]+)(us|ms|s)\b", said)
    return float(number) * _UNITS[unit]


def _found(pattern: str, text: str) -> tuple[Any, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk said: {text}")
    return match.groups()
