"""Write a profile to files.

Converts a profile to a Chrome trace, for chrome://tracing and ui.perfetto.dev.

The format: "Trace Event Format", JSON object form, complete events (ph "X") and metadata events (ph "M"); times in
microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact.storage import write_atomically
from compiler.errors import storage_errors
from compiler.profiling.profile_page import profile_page
from compiler.reports.formatting import plural

if TYPE_CHECKING:
    from compiler.profiling.measured import CallTime, Profile, ThreadTime


def save_profile(profile: Profile, folder: Path, beside: Profile | Mapping[str, Any] | None = None) -> dict[str, Path]:
    """Write `profile.json`, `trace.json` and `profile.html` into a folder, each atomically. Raises StorageError if the
    folder cannot be created or a file cannot be written."""
    with storage_errors(folder, "made", "the folder "):
        folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "profile": ("profile.json", json.dumps(profile.to_dict(), indent=2, allow_nan=False)),
        "trace": ("trace.json", json.dumps(chrome_trace(profile), allow_nan=False)),
        "page": ("profile.html", profile_page(profile, beside)),
    }
    paths = {}
    for key, (name, text) in contents.items():
        paths[key] = folder / name
        write_atomically(paths[key], [text.encode("utf-8")])
    return paths


_PROCESS = 1
_THREAD = 1
_FIRST_TRACK = 2  # number of the first track for threads in parallel loops


def chrome_trace(profile: Profile) -> dict[str, Any]:
    """The calls of one typical run; nested calls are inside their callers. Each thread has a track with its work in
    parallel loops of kernels."""
    return {
        "traceEvents": [
            _metadata("process_name", f"{profile.model} on {profile.target}"),
            _metadata("thread_name", f"one run, {plural(profile.threads, 'thread')} in each kernel"),
            *(
                _metadata("thread_name", f"thread {thread + 1} in parallel loops", _FIRST_TRACK + thread)
                for thread in sorted({each.thread for each in profile.thread_times})
            ),
            *(_event(call) for call in profile.calls),
            *(_work(each, profile.calls[each.call]) for each in profile.thread_times),
        ],
        "displayTimeUnit": "ns",
        "otherData": {
            "model": profile.model,
            "target": profile.target,
            "inputs": ", ".join(f"{name}: {shape}" for name, shape in profile.inputs.items()),
            "latency_p50_us": profile.latency.p50 * 1e6,
        },
    }


def _metadata(name: str, value: str, track: int = _THREAD) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": _PROCESS, "tid": track, "args": {"name": value}}


def _event(call: CallTime) -> dict[str, Any]:
    arguments: dict[str, Any] = {"kernel": call.name, "shapes": ", ".join(call.shapes), "bytes": call.nbytes}
    if call.nodes:
        arguments["nodes"] = ", ".join(call.nodes)
    if call.operations is not None:
        arguments["operations"] = call.operations
        if call.duration > 0:
            arguments["GFLOP/s"] = round(call.operations / call.duration / 1e9, 3)
    return _complete(call, call.start, call.duration, _THREAD, arguments)


def _work(work: ThreadTime, call: CallTime) -> dict[str, Any]:
    return _complete(call, work.start, work.duration, _FIRST_TRACK + work.thread, {"parts": work.parts})


def _complete(call: CallTime, start: float, duration: float, track: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": call.label,
        "cat": call.kind,
        "ph": "X",
        "ts": round(start * 1e6, 4),
        "dur": round(duration * 1e6, 4),
        "pid": _PROCESS,
        "tid": track,
        "args": arguments,
    }
