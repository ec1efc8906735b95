"""One cold start in its own process: import, load, first inference; prints the times in seconds as JSON."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._contestant import CONTESTANTS

_STEADY_RUNS = 5


def _import_tensorwright() -> None:
    import compiler.runtime  # noqa: F401


def _import_onnxruntime() -> None:
    import onnxruntime  # noqa: F401


IMPORTS: Mapping[str, Callable[[], None]] = {
    "tensorwright": _import_tensorwright,
    "onnxruntime": _import_onnxruntime,
}


def _peak_bytes() -> int:
    """Return peak resident memory; `getrusage` would include the parent's before exec."""
    (kilobytes,) = re.findall(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def main() -> int:
    """Time each step of a cold start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=IMPORTS)
    parser.add_argument("path")
    parser.add_argument("arrays")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with np.load(options.arrays) as stored:
        inputs: dict[str, Any] = {name: stored[name] for name in stored.files}
    marks = [time.perf_counter()]
    IMPORTS[options.contestant]()
    marks.append(time.perf_counter())
    run, label = CONTESTANTS[options.contestant](options.path, [inputs], options.threads, "f32")
    marks.append(time.perf_counter())
    run(0)
    marks.append(time.perf_counter())
    steady = []
    for _ in range(_STEADY_RUNS):
        start = time.perf_counter()
        run(0)
        steady.append(time.perf_counter() - start)
    imported, loaded, first = np.diff(marks).tolist()
    times = {"import": imported, "load": loaded, "first": first, "steady": min(steady), "peak_bytes": _peak_bytes()}
    print(json.dumps({"version": label, **times}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
