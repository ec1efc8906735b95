"""Tables of the results of a pack's runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import OptionError

# From NVIDIA's data sheets, without sparsity: TFLOP/s by operand, and GB/s of memory. "H100" and "H200" are SXM boards
# ("H100", "H200") and of the H100 for PCIe.
_PEAKS: dict[str, dict[str, float]] = {
    "H100 PCIe": {"float32": 51, "float16": 756, "bf16": 756, "int8": 1513, "memory": 2000},
    "H200": {"float32": 67, "float16": 989, "bf16": 989, "int8": 1979, "memory": 4800},
    "H100": {"float32": 67, "float16": 989, "bf16": 989, "int8": 1979, "memory": 3350},
}
_PRECISIONS = ("float32", "float16", "bf16", "int8")
_SLOWEST = 8  # listed kernels per net


@dataclass
class EntryResult:
    """The results of an entry: the last line of each stage, and PyTorch's milliseconds by mode."""

    name: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    peers: dict[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        last = self.name.rpartition("-")[2]
        return last if last in _PRECISIONS else "float32"

    @property
    def status(self) -> str:
        return str(self.stages.get("end", {}).get("status", "cut off"))

    def milliseconds(self, stage: str) -> float | None:
        return self.stages.get(stage, {}).get("ms")


@dataclass(frozen=True)
class Results:
    """The results of runs of a pack, in order."""

    entries: dict[str, EntryResult]
    device: str
    facts: dict[str, Any]
    nvidia_smi: str

    @property
    def peaks(self) -> dict[str, float]:
        """The device's limits; empty for a device without a known data sheet."""
        return next((each for name, each in _PEAKS.items() if all(word in self.device for word in name.split())), {})


def read_results(paths: Iterable[Path]) -> Results:
    """Read several files, later ones override earlier ones. A truncated last line is ignored.

    Raises OptionError for a file without results.
    """
    entries: dict[str, EntryResult] = {}
    device, facts, smi = "", {}, ""
    for record in (line for path in paths for line in _lines(path)):
        stage, name = record["stage"], record.get("entry", "")
        if stage == "run":
            smi = record.get("nvidia_smi") or smi
        elif stage == "device":
            device = record["name"]
        elif stage == "facts":
            facts = record
        elif stage == "peer":
            if "ms" in record:
                entries.setdefault(name, EntryResult(name)).peers[record["peer"]] = record["ms"]
        else:
            entry = entries.setdefault(name, EntryResult(name))
            if stage == "loaded":  # a new try
                entry.stages.clear()
            entry.stages[stage] = record
    return Results(entries, device, facts, smi)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {error}", "give a results.json of a pack's run") from error
    whole, _, _ = text.rpartition("\n")
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            if "stage" not in record:
                raise ValueError("no stage")
        except ValueError as error:
            raise OptionError(
                f"{path}, line {number}, is not a line of results: {error}", "give a results.json"
            ) from error
        yield record


def tables(results: Results) -> str:
    """Return all tables as Markdown."""
    parts = [_device(results), _suite(results), _wrong(results), _nets(results), _single(results), _kernels(results)]
    return "\n\n".join(part for part in parts if part)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *lines]) if lines else ""


def _text(value: float | None, form: str = "{:.3f}") -> str:
    return "-" if value is None else form.format(value)


def _device(results: Results) -> str:
    lines = [f"Device: {results.device or 'unknown'}."]
    if results.facts:
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in results.facts["tflop_s"].items())
        lines.append(
            f"A copy moves {results.facts['copy_gb_s']:.0f} GB/s; PyTorch's products of 8192, in TFLOP/s: {rates}."
        )
    smi = results.nvidia_smi.strip()
    return " ".join(lines) + (f"\n\n```\n{smi}\n```" if smi else "")


def _suite(results: Results) -> str:
    suite = [each for name, each in results.entries.items() if name.startswith("conformance-")]
    right = sum(each.status == "right" for each in suite)
    return f"Conformance: {right} of {len(suite)} right." if suite else ""


def _wrong(results: Results) -> str:
    rows = []
    for name, entry in results.entries.items():
        if entry.status == "right":
            continue
        wrong = entry.stages.get("first wrong kernel", {})
        problem = str(entry.stages.get("end", {}).get("problem", entry.status))
        sizes = ", ".join(wrong.get("tensors", ()))
        rows.append([name, entry.status, problem[:300].replace("\n", " "), wrong.get("kernel", "-"), sizes or "-"])
    return _table(("wrong", "status", "problem", "first wrong kernel", "its tensors"), rows)


def _nets(results: Results) -> str:
    rows = []
    for name, entry in results.entries.items():
        if name.startswith("conformance-") or _is_single(name) or "launches" not in entry.stages:
            continue
        outputs = entry.stages.get("numbers", {}).get("outputs", [])
        difference = max((item["rms"] for item in outputs if isinstance(item["rms"], float | int)), default=None)
        best = min(
            (value for value in (entry.milliseconds("launches"), entry.milliseconds("graph")) if value), default=None
        )
        ways = [entry.peers.get(way) for way in ("eager", "graph", "compile")]
        fastest = min((value for value in ways if value), default=None)
        ratio = fastest / best if fastest and best else None
        ours = [_text(entry.milliseconds(stage)) for stage in ("launches", "graph")]
        rows.append([name, entry.status, _text(difference, "{:.1e}"), *ours, *map(_text, ways), _text(ratio, "{:.2f}")])
    header = (
        "net",
        "numbers",
        "difference",
        "launches ms",
        "graph ms",
        "torch eager",
        "torch graph",
        "torch.compile",
        "ratio",
    )
    return _table(header, rows)


def _is_single(name: str) -> bool:
    return name.split("-")[0] in ("product", "elementwise", "softmax")


def _single(results: Results) -> str:
    rows = []
    for name, entry in results.entries.items():
        if not _is_single(name):
            continue
        for kernel in entry.stages.get("kernels", {}).get("kernels", []):
            peers = [entry.peers.get(way) for way in ("eager", "compile")]
            rows.append([name, *_rates(kernel, entry.precision, results), *map(_text, peers)])
    header = ("kernel", "us", "GB/s", "TFLOP/s", "of the limit", "torch eager ms", "torch.compile ms")
    return _table(header, rows)


def _rates(kernel: dict[str, Any], precision: str, results: Results) -> list[str]:
    """Return microseconds, bandwidth (each tensor counted once), compute rate, and the share of the nearer limit."""
    microseconds = kernel["us"]
    memory, computed = kernel["bytes"] / microseconds / 1e3, kernel["operations"] / microseconds / 1e6
    peaks = results.peaks
    shares = (memory / peaks["memory"], computed / peaks[precision]) if peaks else ()
    share = f"{100 * max(shares):.0f} %" if shares else "-"
    return [f"{microseconds:.1f}", f"{memory:.0f}", f"{computed:.1f}", share]


def _kernels(results: Results) -> str:
    parts = []
    for name, entry in results.entries.items():
        kernels = entry.stages.get("kernels", {}).get("kernels", [])
        if name.startswith("conformance-") or _is_single(name) or not kernels:
            continue
        total = sum(kernel["us"] * kernel["calls"] for kernel in kernels)
        slowest = sorted(kernels, key=lambda kernel: -kernel["us"] * kernel["calls"])[:_SLOWEST]
        rows = [
            [
                kernel["name"],
                str(kernel["calls"]),
                f"{100 * kernel['us'] * kernel['calls'] / total:.0f} %",
                *_rates(kernel, entry.precision, results),
                ", ".join(kernel["tensors"]),
            ]
            for kernel in slowest
        ]
        header = ("kernel", "calls", "of the net", "us", "GB/s", "TFLOP/s", "of the limit", "tensors")
        parts.append(
            f"{name}: {len(kernels)} kernels, {total / 1e3:.3f} ms together; the slowest:\n\n{_table(header, rows)}"
        )
    return "\n\n".join(parts)
