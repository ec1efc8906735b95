"""Speech detection on a Raspberry Pi without Python or any library: copy one file and run it.

    python -m examples.raspberry_pi      # for a Raspberry Pi 4, into ./speech-pi
    scp speech-pi pi@raspberry: && ssh pi@raspberry ./speech-pi --verify --runs 100

If an emulator of the processor is installed, the program is run on this machine too.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import targets
import tensorwright
from compiler.device.static_program import StaticProgram, write_static_program
from examples.speech import first_frame, model_path


def build(target: targets.Target, output: Path) -> StaticProgram:
    """Build the program, with a frame of silence as its stored example."""
    frame = first_frame()
    rate = frame.pop("sr")
    module = tensorwright.compile(
        model_path(),
        target,
        shapes={name: value.shape for name, value in frame.items()},
        constants={"sr": rate},
        threads=1,
        reference_inputs=frame,
    )
    return write_static_program(module.artifact, target, output)


def run_here(program: StaticProgram, target: targets.Target) -> str:
    """Return the output of the program's self-check under the target's emulator. Raises CalledProcessError."""
    command = [*target.emulator(), str(program.path.resolve()), "--verify"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(arguments: list[str] | None = None) -> None:
    """Build the program, and print how to use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="raspberry-pi-4")
    parser.add_argument("--output", type=Path, default=Path("speech-pi"))
    options = parser.parse_args(arguments)
    target = targets.get(options.target, cores=1)
    program = build(target, options.output)
    print(f"{program.path}: {program.bytes / 1e6:.1f} MB, of which the model {program.module_bytes / 1e6:.1f} MB")
    try:
        print(run_here(program, target), end="")
    except targets.ToolchainMissing as missing:
        print(f"not run here: {missing.message} ({missing.hint})")


if __name__ == "__main__":
    main()
