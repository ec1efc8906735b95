"""Models for another architecture under its emulator: results compared with this machine's, and executed instructions.

    python -m benchmarks.emulated resnet18 mobilenet_v2 minilm-16 --target raspberry-pi-4
    python -m benchmarks.emulated resnet18 --target raspberry-pi-4 --instructions libinsn.so --untuned

Emulated time is not meaningful for a device, so nothing is timed. Instructions are counted by QEMU's plugin `insn`
(tests/tcg/plugins/insn.c of its sources; with `libinsn.so,inline=on` it costs little); QEMU must be built with plugins,
unlike Debian's: set TENSORWRIGHT_QEMU to its folder. Building it takes minutes:

    ../configure --target-list=aarch64-linux-user --enable-plugins --disable-system --disable-tools --disable-docs
    ninja qemu-aarch64 && gcc -O2 -shared -fPIC -o libinsn.so ../tests/tcg/plugins/insn.c -I../include/plugins \\
        -I../include/qemu $(pkg-config --cflags glib-2.0)

The instructions of a run are those of two runs minus those of one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import compiler
import targets
from benchmarks._models import Task, task_of
from compiler.artifact import Artifact, Contents
from compiler.codegen.build import build_library
from compiler.device.emulation import EmulatedModule
from compiler.driver.compile import translated_target_errors
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline

Array = np.ndarray


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--target", default="raspberry-pi-4")
    parser.add_argument("--instructions", type=Path, metavar="PLUGIN", help="count with this plugin of QEMU")
    parser.add_argument("--untuned", action="store_true", help="count TVM's own default build too")
    options = parser.parse_args(arguments)
    target = targets.get(options.target, cores=1)
    print(f"target {target.name}: {target.description}; {target.how_it_runs()}; one thread")
    print(f"{'model':<22}{'difference':>12}{'instructions':>15}{'untuned':>18}{'ratio':>8}")
    for name in options.models:
        _report(task_of(name), target, options.instructions, options.untuned)


def _report(task: Task, target: targets.Target, plugin: Path | None, untuned: bool) -> None:
    with np.load(task.arrays) as stored:
        inputs = {name: stored[name] for name in stored.files}
    module = compiler.compile(task.path, target, shapes=task.shapes, threads=1)
    here = compiler.compile(task.path, shapes=task.shapes, threads=1).run(inputs)
    difference = max(_difference(value, here[name]) for name, value in module.run(inputs).items())
    line = f"{task.name:<22}{difference:>12.2e}"
    if plugin is not None:
        ours = count_instructions(module.artifact, target, inputs, plugin)
        line += f"{ours:>15,}"
        if untuned:
            theirs = count_instructions(_untuned(task, target, module.artifact), target, inputs, plugin)
            line += f"{theirs:>18,}{theirs / ours:>8.1f}"
    print(line, flush=True)


def _difference(a: Array, b: Array) -> float:
    """Return the largest difference, relative to the largest value."""
    wide = b.astype(np.float64)
    return float(np.abs(a.astype(np.float64) - wide).max() / max(np.abs(wide).max(), 1e-30))


def _untuned(task: Task, target: targets.Target, like: Artifact) -> Artifact:
    """Build the same model with TVM's default for every kernel: legalized and fused, but not scheduled."""
    model = import_model(task.path, shapes=task.shapes, constants=None, example_inputs=None, dynamic_shapes=None)
    context = PipelineContext(target=target, machine=None)
    left_out = {f"instead-of:{name}": None for name in ("plan-layout", "fuse-attention", "pack-matmul-weights")}
    pipeline = run_pipeline(model.mod, context, passes=left_out)
    with translated_target_errors():
        library = build_library(pipeline.mod, target)
    manifest = like.manifest
    return Artifact.create(
        model_name=manifest.model_name,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        target=manifest.target,
        library=library,
        contents=Contents(parameters=pipeline.parameters),
        threads=1,
    )


def count_instructions(artifact: Artifact, target: targets.Target, inputs: dict[str, Array], plugin: Path) -> int:
    """Return the instructions of one run on one thread, without loading."""
    emulated = EmulatedModule(artifact, target)
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        inputs_path = emulated.write_inputs(inputs, Path(folder))
        totals = []
        for runs in (0, 1):
            options = ["--inputs", str(inputs_path)] + (["--runs", str(runs)] if runs else [])
            command = emulated.command(["-plugin", str(plugin), "-d", "plugin"], options)
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=emulated.environment(1))
            found = re.search(r"total insns: (\d+)", done.stderr + done.stdout)
            assert found is not None, done.stderr[-500:]
            totals.append(int(found.group(1)))
    # The second program runs the model once to warm up and once to measure.
    return (totals[1] - totals[0]) // 2


if __name__ == "__main__":
    main()
