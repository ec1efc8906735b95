"""Accuracy loss of compression and its gains in size and time, compared with ONNX Runtime's quantizer on the same data.

    python -m benchmarks.compression
    python -m benchmarks.compression digits-cnn minilm --methods min-max mse
    python -m benchmarks.compression digits-cnn --methods --steps     # only pruning and the other techniques

Every net is trained, and every score is measured on real data. Times are medians of runs in one process, one thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import compiler
from benchmarks._compression_cases import CASES, Array, Case, Run
from benchmarks._compression_steps import steps_for
from compiler.compression.quantization import TECHNIQUES
from compiler.compression.quantization.affine import decibels, noise_ratio
from compiler.compression.quantization.calibration import calibrators
from compiler.compression.quantization.schemes import scheme_names

_COMPARED = 8  # samples
_PEER_METHODS = {"min-max": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


@dataclass
class Row:
    """One line of the table; `decibels` is signal to noise of the outputs on calibration data, sizes are of files."""

    model: str
    technique: str
    score: float
    drop: float
    decibels: float
    integer_layers: str
    megabytes: float
    milliseconds: float


def main() -> int:
    """Parse the arguments, measure, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compression",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", help=f"of {', '.join(CASES)}; all when none is given")
    parser.add_argument("--schemes", nargs="*", default=[], choices=scheme_names()[1:], help="beside static-int8")
    parser.add_argument("--groups", nargs="*", type=int, default=[64], help="group size of weight-only schemes")
    parser.add_argument("--methods", nargs="*", default=["min-max", "mse"], choices=calibrators())
    parser.add_argument("--techniques", nargs="*", default=["bias-correction", "gptq"], choices=TECHNIQUES)
    parser.add_argument(
        "--steps", nargs="*", metavar="STEP", help="pruning and the other techniques: the named ones, or all"
    )
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--no-peer", action="store_true", help="leave ONNX Runtime out")
    parser.add_argument("--reports", help="a folder for a report of each quantization")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    unknown = sorted(set(options.models) - set(CASES))
    if unknown:
        parser.error(f"no net {', '.join(unknown)}: there are {', '.join(CASES)}")
    console = Console()
    console.width = max(console.width, 120)
    rows: list[Row] = []
    for name in options.models or CASES:
        case = CASES[name]()
        console.print(f"[dim]{name}: {case.measure}")
        rows += _rows(case, options, console)
    console.print(_table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


def _rows(case: Case, options: argparse.Namespace, console: Console) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        plain = compiler.compile(case.path, threads=1, **case.options)
        before = case.evaluate(plain.run)
        rows = [_row(case, "float32", plain.run, plain.run, before, "", _bytes(plain, folder), before)]
        for method in options.methods:
            rows.append(_quantized(case, {"method": method}, f"int8 {method}", plain.run, before, options, folder))
            console.print(f"[dim]  {rows[-1].technique}: {rows[-1].score:.5f} (float {before:.5f})")
        for scheme in options.schemes:
            for group in options.groups if scheme.startswith("weight-") else [64]:
                label = f"{scheme} {group}" if scheme.startswith("weight-") else scheme
                arguments = {"scheme": scheme, "group": group}
                rows.append(_quantized(case, arguments, label, plain.run, before, options, folder))
                console.print(f"[dim]  {rows[-1].technique}: {rows[-1].score:.5f} (float {before:.5f})")
        for label in _chosen_steps(case, options.steps):
            rows.append(_step(case, label, plain.run, before, folder))
            console.print(f"[dim]  {label}: {rows[-1].score:.5f} (float {before:.5f})")
        for method in () if options.no_peer else options.methods:
            if method in _PEER_METHODS:
                rows.append(_peer(case, method, plain.run, before, folder))
                console.print(f"[dim]  {rows[-1].technique}: {rows[-1].score:.5f}")
    return rows


def _quantized(
    case: Case,
    arguments: dict[str, Any],
    label: str,
    exact: Run,
    before: float,
    options: argparse.Namespace,
    folder: str,
) -> Row:
    technique = " ".join([label, *options.techniques])
    try:
        model = compiler.quantize(
            case.path,
            case.calibration,
            evaluate=case.evaluate,
            max_drop=options.max_drop,
            techniques=options.techniques,
            threads=1,
            **arguments,
            **case.options,
        )
    except compiler.errors.AccuracyError as error:
        return Row(case.name, technique, float("nan"), float("nan"), float("nan"), error.message, 0.0, 0.0)
    if options.reports:
        Path(options.reports).mkdir(parents=True, exist_ok=True)
        model.report.save(Path(options.reports) / f"{case.name}-{label.replace(' ', '-')}.html")
    module = compiler.compile(model, threads=1)
    layers = f"{len(model.report.layers) - len(model.report.in_float)}/{len(model.report.layers)}"
    return _row(case, technique, module.run, exact, before, layers, _bytes(module, folder))


def _chosen_steps(case: Case, wanted: Sequence[str] | None) -> list[str]:
    known = list(steps_for(case))
    return [] if wanted is None else [each for each in known if not wanted or each in wanted]


def _step(case: Case, label: str, exact: Run, before: float, folder: str) -> Row:
    """Return the row of a technique other than quantization, or the reason why it does not apply."""
    try:
        model = steps_for(case)[label](case)
    except (compiler.errors.OptionError, compiler.errors.AccuracyError) as error:
        return Row(case.name, label, float("nan"), float("nan"), float("nan"), error.message, 0.0, 0.0)
    module = compiler.compile(model, threads=1)
    return _row(case, label, module.run, exact, before, "", _bytes(module, folder))


def _row(
    case: Case, technique: str, run: Run, exact: Run, before: float, layers: str, size: int, score: float | None = None
) -> Row:
    found = case.evaluate(run) if score is None else score
    drop = (before - found) / abs(before) if before else 0.0
    noise = _decibels(run, exact, case.calibration[:_COMPARED])
    return Row(case.name, technique, found, drop, noise, layers, size / 1e6, _milliseconds(run, case.calibration[0]))


def _decibels(run: Run, exact: Run, samples: Sequence[Mapping[str, Array]]) -> float:
    """Return the signal-to-noise ratio of all float outputs together."""
    totals = np.zeros(2)
    for sample in samples:
        got, wanted = run(sample), exact(sample)
        for value, expected in zip(got.values(), wanted.values(), strict=True):
            totals += noise_ratio(value, expected)
    return decibels(float(totals[0]), float(totals[1]))


def _bytes(module: Any, folder: str) -> int:
    path = Path(folder) / "module.twm"
    module.export(path)
    return path.stat().st_size


def _milliseconds(run: Run, sample: Mapping[str, Array], seconds: float = 1.0) -> float:
    """Return the median processor time of a run, which excludes other programs."""
    run(sample)
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < deadline:
        start = time.process_time()
        run(sample)
        times.append(time.process_time() - start)
    return float(np.median(times)) * 1e3


def _peer(case: Case, method: str, exact: Run, before: float, folder: str) -> Row:
    """Measure ONNX Runtime's static quantizer, same data and scheme: QDQ, uint8 activations, int8 weights per
    channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    constants = case.options.get("constants", {})
    prepared, path = Path(folder) / "prepared.onnx", Path(folder) / "peer.onnx"
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        quant_pre_process(str(case.path), str(prepared), skip_symbolic_shape=True)
        samples = iter([{**sample, **constants} for sample in case.calibration])
        quantization.quantize_static(
            str(prepared),
            str(path),
            _Reader(lambda: next(samples, None)),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, _PEER_METHODS[method]),
        )
    finally:
        logging.root.setLevel(level)
    run = _session(path, constants)
    return _row(case, f"ONNX Runtime int8 {method}", run, exact, before, "", path.stat().st_size)


@dataclass
class _Reader:
    """Calibration data reader for ONNX Runtime's quantizer."""

    get_next: Callable[[], Any]


def _session(path: Path, constants: Mapping[str, Array]) -> Run:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    input_names = {each.name for each in session.get_inputs()}

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        given = {name: value for name, value in {**inputs, **constants}.items() if name in input_names}
        return dict(zip(names, session.run(None, given), strict=True))

    return run


def _table(rows: list[Row]) -> Table:
    table = Table(title="score: higher is better; one thread")
    table.add_column("model", no_wrap=True)
    table.add_column("technique", no_wrap=True)
    for heading in ("score", "drop", "outputs dB", "int8 layers", "MB", "CPU ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        values = (
            f"{row.score:.5f}",
            f"{row.drop:.3%}",
            f"{row.decibels:.1f}",
            row.integer_layers,
            f"{row.megabytes:.2f}",
        )
        table.add_row(row.model, row.technique, *values, f"{row.milliseconds:.3f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
