"""Modelled times of networks on a described x86-64 processor, with the cost model of `compiler.quantize`.

    python -m benchmarks.modelled resnet50 vit_b_16 --target granite-rapids:2 --precision bf16
    python -m benchmarks.modelled resnet50 minilm-128 --precision int8 --kernels
    python -m benchmarks.modelled resnet50 --batch 16 --precision bf16
    python -m benchmarks.modelled SmolLM2-135M --prompt 512 --precision int8 --without-tiles

For each net, or folder or GGUF file of a language model with `--prompt`: the time at a clock of 3 GHz, perfectly
divided among the cores; its share in kernels whose sums stay in tiles; these kernels' share of the unit's peak (16 x 16
sums of 64 bytes per row take 16 cycles); and OpenVINO 2026.4's measured time on two cores of a Granite Rapids class
processor. Nets in int8 are quantized by ONNX Runtime, as in `benchmarks.compare`. The model orders candidates; it is
not a not a measurement.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from rich.console import Console
from rich.table import Table
from tvm import IRModule, relax

import targets
from benchmarks._models import batched, task_of
from benchmarks._quantized import quantized
from compiler.compression.predicted_times import KernelTime, PredictedClock
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.source import import_model
from targets.cpu.x86 import X86Target

_HERTZ = 3e9  # clock frequency of the predictions
_BYTES_PEAK = 16 * 16 * 64 * 2 / 16 * _HERTZ
_MEASURED = Path(__file__).parent / "results" / "openvino-granite-rapids.json"
_MEASURED_TARGET = "granite-rapids:2"


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+")
    parser.add_argument("--target", default="granite-rapids:2")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16", "float16", "int8", "int4"))
    parser.add_argument("--batch", type=int, help="of a torchvision net")
    parser.add_argument("--prompt", type=int, metavar="TOKENS", help="prompt of a language model, with an empty cache")
    parser.add_argument("--without-tiles", action="store_true", help="the same processor using only vectors")
    parser.add_argument("--kernels", action="store_true", help="one row per kernel")
    arguments = parser.parse_args()
    target = targets.get(arguments.target)
    if arguments.without_tiles:
        assert isinstance(target, X86Target)
        features = frozenset(each for each in target.machine.features if not each.startswith("amx"))
        target = replace(target, machine=target.machine.model_copy(update={"features": features}))
    table = Table(title=f"{target.name}, {target.machine.cores} cores, {arguments.precision}")
    for name in ("net", "modelled ms", "of it in tiles", "share of the unit's peak there", "OpenVINO ms", "ratio"):
        table.add_column(name)
    alone = arguments.batch is None and arguments.prompt is None and arguments.target == _MEASURED_TARGET
    peers = json.loads(_MEASURED.read_text(encoding="utf-8")).get(arguments.precision, {}) if alone else {}
    ratios = []
    for name in arguments.nets:
        mod, precision = _module(name, arguments)
        clock = PredictedClock(target, precision)
        [times] = clock([mod])
        ours = 1e3 * sum(each.seconds for each in times) / target.machine.cores
        behind = [f"{peers[name]:.2f}", f"{peers[name] / ours:.2f}"] if name in peers else []
        ratios += [peers[name] / ours] if name in peers else []
        table.add_row(name, *_summary(times, target.machine.cores), *behind)
        for kernel, calls in _by_kernel(times) if arguments.kernels else ():
            table.add_row(f"  {len(calls)} {kernel}", *_summary(calls, target.machine.cores))
    table.caption = f"geometric mean of the ratios {geometric_mean(ratios):.2f}" if ratios else None
    Console().print(table)


def _module(name: str, arguments: argparse.Namespace) -> tuple[IRModule, str]:
    """A network or prompt to model, and the precision to compile it in."""
    if arguments.prompt is not None:
        options = LanguageModelOptions(arguments.precision)
        return prompt_of(import_language_model(Path(name), options), arguments.prompt), "float32"
    task = task_of(name) if arguments.batch is None else batched(name, arguments.batch)
    is_int8 = arguments.precision == "int8"
    model = import_model(str((quantized(task) if is_int8 else task).path), shapes=task.shapes)
    return model.mod, "float32" if is_int8 else arguments.precision


def prompt_of(model: ImportedModel, tokens: int) -> IRModule:
    """A language model's prompt of a given length, with an empty cache."""
    names = {size for each in model.inputs for size in each.shape if isinstance(size, str)}
    known = model.mod
    for name in names:
        known = relax.transform.BindSymbolicVars({name: tokens})(known)
    return known


def _by_kernel(times: list[KernelTime]) -> list[tuple[str, list[KernelTime]]]:
    """Calls grouped by kernel, longest first."""
    by_kernel: dict[str, list[KernelTime]] = {}
    for each in times:
        by_kernel.setdefault(each.name, []).append(each)
    return sorted(by_kernel.items(), key=lambda entry: -sum(each.seconds for each in entry[1]))


def _summary(times: list[KernelTime], cores: int) -> tuple[str, str, str]:
    """Milliseconds, the share spent in tile kernels, and their fraction of the peak."""
    total, tiles = sum(each.seconds for each in times), [each for each in times if each.tiles]
    inside = sum(each.seconds for each in tiles)
    ideal = sum(each.operations / (_BYTES_PEAK / (2 if each.tiles.endswith("ps") else 1)) for each in tiles)
    return (
        f"{total / cores * 1e3:.2f}",
        f"{inside / total:.0%}",
        f"{ideal / inside:.0%}" if inside else "",
    )


if __name__ == "__main__":
    main()
