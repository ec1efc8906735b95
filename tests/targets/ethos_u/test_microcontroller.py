"""C sources of a whole net: they compile, and hand Arm's driver the command stream and the memories of the program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import compiler
from compiler.artifact import read_artifact
from compiler.device.bundle import write_bundle
from targets.conformance.models import quantized_net
from targets.errors import TargetError, ToolchainMissing
from targets.ethos_u.program import Program, is_program
from targets.ethos_u.runtime import execute
from targets.toolchain import install_line
from tests.targets.ethos_u.checking import DEFAULT, target_named
from tests.targets.ethos_u.graphs import QuantizedGraph

# What is used of ethosu_driver.h of Arm's ethos-u-core-driver, with the types it has there.
_DRIVER_HEADER = """#include <stddef.h>
#include <stdint.h>
struct ethosu_driver;
int ethosu_invoke_v3(struct ethosu_driver *drv, const void *custom_data_ptr, const int custom_data_size,
                     uint64_t *const base_addr, const size_t *base_addr_size, const int num_base_addr, void *user_arg);
"""
# A driver that writes what it is given: the commands, then each memory that has an address, with its number and size.
_RECORDER = """#include <stdio.h>
#include <stdlib.h>
#include "ethosu_driver.h"
#include "%(name)s.h"
int ethosu_invoke_v3(struct ethosu_driver *drv, const void *data, const int size, uint64_t *const addresses,
                     const size_t *sizes, const int count, void *user)
{
    if (((uintptr_t)data & 15) || drv || user) return -1;
    fwrite(&size, 4, 1, stdout);
    fwrite(data, 1, (size_t)size, stdout);
    for (int region = 0; region < count; region++) {
        int bytes = (int)sizes[region];
        if (addresses[region] & 15) return -1;
        fwrite(&region, 4, 1, stdout);
        fwrite(&bytes, 4, 1, stdout);
        if (bytes) fwrite((void *)(uintptr_t)addresses[region], 1, sizes[region], stdout);
    }
    return 0;
}
int main(void)
{
    unsigned char *arena = aligned_alloc(16, (%(guard)s_ARENA_BYTES + 15) / 16 * 16);
    if (!arena) return 1;
    for (size_t i = 0; i < %(guard)s_ARENA_BYTES; i++) arena[i] = 7;
    return %(name)s_run(NULL, arena);
}
"""


def written(folder: Path) -> tuple[Program, Path]:
    """A module's program, and the source made of it."""
    module = folder / "net.twm"
    compiler.compile(quantized_net()[0], DEFAULT, threads=1, records=False).export(module)
    artifact = read_artifact(module)
    bundle = write_bundle(artifact, target_named(), folder / "sources")
    (source,) = (folder / "sources").glob("*.c")
    assert set(bundle.files) == {source.name, source.with_suffix(".h").name}
    (folder / "sources" / "ethosu_driver.h").write_text(_DRIVER_HEADER)
    (data,) = (np.asarray(each) for each in artifact.parameters.values() if is_program(each))
    return Program.from_bytes(data.tobytes()), source


def _program(name: str, package: str) -> str:
    """A compiler's path. Raises ToolchainMissing, for which the test skips."""
    found = shutil.which(name)
    if found is None:
        raise ToolchainMissing(f"{name} is not on the PATH", install_line(package))
    return found


def test_the_driver_gets_the_program(tmp_path: Path) -> None:
    program, source = written(tmp_path)
    words = {"name": source.stem, "guard": source.stem.upper()}
    main = source.with_name("main.c")
    main.write_text(_RECORDER % words)
    binary = tmp_path / "recorder"
    subprocess.run(
        [_program("cc", "gcc"), "-std=c11", "-Wall", "-Wextra", "-Werror", source, main, "-o", binary], check=True
    )
    said = subprocess.run([binary], check=True, stdout=subprocess.PIPE).stdout
    size = int.from_bytes(said[:4], "little")
    commands, rest = said[4 : 4 + size], said[4 + size :]
    regions = {}
    while rest:
        region, length = (int.from_bytes(rest[place : place + 4], "little") for place in (0, 4))
        regions[region], rest = rest[8 : 8 + length], rest[8 + length :]
    assert commands == program.commands
    assert regions[program.weight_region] == program.weights
    scratch = {region: size for region, size in program.scratch.items() if size}
    assert {region: len(regions[region]) for region in scratch} == scratch
    # Bound up again from what the driver was given, it computes what the module does.
    again = Program(
        program.accelerator, commands, regions[program.weight_region], program.weight_region, program.scratch,
        program.inputs, program.outputs,
    )  # fmt: skip
    operands = [np.arange(place.size).astype(np.int8) for place in program.inputs]
    for actual, wanted in zip(execute(again, operands), execute(program, operands), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_it_compiles_for_a_cortex_m55(tmp_path: Path) -> None:
    cross = _program("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    program, source = written(tmp_path)
    command = [cross, "-mcpu=cortex-m55", "-mthumb", "-std=c11", "-ffreestanding", "-Wall", "-Werror", "-Os", "-c"]
    subprocess.run([*command, source, "-o", tmp_path / "net.o"], check=True)
    assert (tmp_path / "net.o").stat().st_size > len(program.commands) + len(program.weights)


def test_a_net_that_needs_the_processor_is_refused(tmp_path: Path) -> None:
    graph = QuantizedGraph(0)
    x = graph.rounded(graph.node("Relu", [graph.input(1, 9)]))
    model = graph.model(graph.node("CumSum", [x, graph.constant(np.int64(1))]))
    compiler.compile(model, DEFAULT, threads=1, records=False).export(tmp_path / "net.twm")
    with pytest.raises(TargetError, match="does not run wholly") as error:
        write_bundle(read_artifact(tmp_path / "net.twm"), target_named(), tmp_path / "sources")
    assert "cumsum" in str(error.value)
    assert not (tmp_path / "sources").exists()
