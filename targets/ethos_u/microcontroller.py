"""C sources for a net that runs entirely on the accelerator, from a Cortex-M program with Arm's ethos-u-core-driver.

The command stream and the weights are constant arrays; working memory is the caller's. Not tested on hardware.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from targets.errors import TargetError
from targets.ethos_u.program import Program, TensorLocation, is_program
from targets.ethos_u.settings import NetworkSettings

_ALIGNMENT = 16
_BYTES_A_LINE = 20

_HEADER = """/* {title}, for {accelerator}: runs wholly on the accelerator, through Arm's ethos-u-core-driver.

   Give the driver the memories below ({alignment}-byte aligned, reachable by the accelerator), write the inputs,
   call {name}_run, read the outputs. Caches are the caller's: clean the inputs, invalidate the outputs.
{tensors} */
#ifndef {guard}_H
#define {guard}_H

#include <stddef.h>
#include <stdint.h>

struct ethosu_driver;

{definitions}

#ifdef __cplusplus
extern "C" {{
#endif

/* Of ethosu_driver.h: 0, or less than 0 where the driver failed. */
int {name}_run(struct ethosu_driver *driver{parameters});

#ifdef __cplusplus
}}
#endif
#endif
"""

_SOURCE = """#include "{name}.h"
#include "ethosu_driver.h"

static const uint8_t commands[{command_bytes}] __attribute__((aligned({alignment}))) = {{
{commands}
}};

{location}static {const}uint8_t weights[{weight_bytes}] __attribute__((aligned({alignment}))) = {{
{weights}
}};

int {name}_run(struct ethosu_driver *driver{parameters})
{{
    uint64_t addresses[{count}] = {{ 0 }};
    size_t sizes[{count}] = {{ 0 }};
{assignments}
    return ethosu_invoke_v3(driver, commands, (int)sizeof(commands), addresses, sizes, {count}, NULL);
}}
"""


_IN_SRAM = "/* Tuned for weights in SRAM: not const, so that the startup code copies them there with other data. */\n"


def sources(title: str, report: Mapping[str, Any], parameters: Iterable[Any]) -> dict[str, str]:
    """The files by name: a header and a source. Raises TargetError if the net does not run entirely on the accelerator.

    Args:
        report: the partition pass's report.
        parameters: arrays of the module, one of which is the program.
    """
    beside = report["operators"]["processor"]
    if report["segments"] != 1 or beside or "tensors" not in report:
        remaining = ", ".join(f"{name} ({count})" for name, count in beside.items()) or "its inputs or outputs"
        raise TargetError(
            f"the net does not run wholly on {report['accelerator']}: the processor computes {remaining}",
            "C sources are for nets of one program; see the refusals of `tensorwright inspect`, and quantize the model",
        )
    (data,) = (np.asarray(each).tobytes() for each in parameters if is_program(each))
    program = Program.from_bytes(data)
    name = re.sub(r"\W", "_", title.lower()).strip("_") or "net"
    name = f"net_{name}" if name[0].isdigit() else name
    program = replace(program, scratch={region: size for region, size in program.scratch.items() if size})
    arenas = sorted(program.scratch)
    in_sram = NetworkSettings.of(report.get("settings", {})).vela.weights_in_sram
    arguments = "".join(f", void *{_arena(program, region)}" for region in arenas)
    common = {"name": name, "guard": name.upper(), "parameters": arguments, "alignment": _ALIGNMENT}
    header = _HEADER.format(
        **common,
        title=title,
        accelerator=program.accelerator,
        tensors="".join(_described(report["tensors"], kind) for kind in ("inputs", "outputs")),
        definitions="\n".join(_definitions(name, program, report["tensors"])),
    )
    source = _SOURCE.format(
        **common,
        command_bytes=len(program.commands),
        commands=_bytes(program.commands),
        weight_bytes=max(len(program.weights), 1),
        weights=_bytes(program.weights or b"\0"),
        location=_IN_SRAM if in_sram else "",
        const="" if in_sram else "const ",
        count=max([program.weight_region, *arenas]) + 1,
        assignments="\n".join(_assignments(program)),
    )
    return {f"{name}.h": header, f"{name}.c": source}


def _arena(program: Program, region: int) -> str:
    return "arena" if region == min(program.scratch) else f"arena{region}"


def _described(tensors: Mapping[str, Sequence[Mapping[str, Any]]], kind: str) -> str:
    lines = [
        f"   {kind[:-1]} {tensor['name']}: {'x'.join(map(str, tensor['shape']))} bytes, each "
        f"(value - {tensor['zero']}) * {tensor['scale']:.9g} as int8\n"
        + (f"     laid out with {tensor['arrangement']}\n" if "arrangement" in tensor else "")
        for tensor in tensors[kind]
    ]
    return "".join(lines)


def _definitions(name: str, program: Program, tensors: Mapping[str, Any]) -> list[str]:
    lines = []
    for region, size in sorted(program.scratch.items()):
        lines.append(f"#define {name.upper()}_{_arena(program, region).upper()}_BYTES {size}u")
    for kind, places in (("INPUT", program.inputs), ("OUTPUT", program.outputs)):
        for number, (location, tensor) in enumerate(zip(places, tensors[f"{kind.lower()}s"], strict=True)):
            lines += _of_tensor(f"{name.upper()}_{kind}{number}", location, tensor, program)
    return lines


def _of_tensor(prefix: str, location: TensorLocation, tensor: Mapping[str, Any], program: Program) -> list[str]:
    return [
        f"#define {prefix}_OFFSET {location.offset}u /* in {_arena(program, location.region)} */",
        f"#define {prefix}_BYTES {location.size}u",
        f"#define {prefix}_SCALE {float(tensor['scale'])!r}f",
        f"#define {prefix}_ZERO ({tensor['zero']})",
    ]


def _assignments(program: Program) -> list[str]:
    values = {program.weight_region: ("weights", "sizeof(weights)")}
    values |= {region: (_arena(program, region), str(size)) for region, size in program.scratch.items()}
    return [
        line
        for region, (pointer, size) in sorted(values.items())
        for line in (f"    addresses[{region}] = (uint64_t)(uintptr_t){pointer};", f"    sizes[{region}] = {size};")
    ]


def _bytes(data: bytes) -> str:
    lines = (data[start : start + _BYTES_A_LINE] for start in range(0, len(data), _BYTES_A_LINE))
    return "\n".join("    " + ", ".join(str(each) for each in line) + "," for line in lines)
