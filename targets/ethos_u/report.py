"""Report of the part of a model that runs on the accelerator and its cost, as plain data for the manifest.

Vela's cycles do not include the Cortex-M's part of a network, which is estimated in its own cycles. The numbers are
rough ones for a Cortex-M55 with Helium, which processes 128 bits in two cycles; nothing was measured. They keep a
search from moving work to the processor that costs more there than it saves on the accelerator.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from schedules.ir.tvm_types import Expr, Var
from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.layout import channels_last
from targets.ethos_u.segments import Port, Segment
from targets.ethos_u.settings import VelaOptions
from targets.ethos_u.steps import Step, Unsupported
from targets.ethos_u.vela import Compiled
from targets.ethos_u.view import View, operator_name, registered_name, static_shape

_LINES = 8  # layers in the summary
_NOT_COUNTED = ("relax.quantize", "relax.dequantize")


def partition_report(
    view: View,
    steps: Mapping[Var, Step],
    refused: Sequence[tuple[str, str]],
    left: Sequence[Expr],
    parts: Sequence[Segment],
    compiled: Sequence[Compiled],
    accelerator: Accelerator,
    options: VelaOptions,
) -> dict[str, Any]:
    """The report of the partition pass; `left` are the calls that stay on the processor. If there is a single segment,
    "tensors" are its inputs and outputs in order, in the accelerator's form.

    Vela's numbers are estimates of its hardware model, and its documentation asks not to compare them across
    accelerators.
    """
    counted = Counter(f"{step.operator} {step.sizes}" for step in steps.values())
    reasons = Counter(refused)
    macs = sum(step.macs for step in steps.values())
    macs_left = _processor_macs(view, steps)
    beside = Counter(_names(left))
    total = len(steps) + beside.total()
    report: dict[str, Any] = {
        "accelerator": accelerator.name,
        "simulated": not accelerator.is_u85,
        "claimed": [name if count == 1 else f"{name} ({count} times)" for name, count in counted.items()],
        "refused": [
            {"operator": operator, "reason": reason, "times": count} for (operator, reason), count in reasons.items()
        ],
        "operators": {"accelerator": len(steps), "processor": dict(beside), "share": len(steps) / max(total, 1)},
        "macs": {"accelerator": macs, "processor": macs_left, "share": macs / max(macs + macs_left, 1)},
        "segments": len(compiled),
    }
    if compiled:
        report["estimate"] = {
            **estimate(compiled, accelerator, options),
            "processor_cycles": processor_cycles(left, parts),
        }
    if len(parts) == 1 and not beside and (tensors := _tensors(view, parts[0])) is not None:
        report["tensors"] = tensors
    return {**report, "summary": _summary(report)}


def _tensors(view: View, part: Segment) -> dict[str, list[dict[str, Any]]] | None:
    """Inputs and outputs of a segment, or None if they are not just the model's inputs and outputs, quantized."""
    inputs, outputs = [], []
    results = getattr(view.definition(view.results), "fields", [view.results])
    for port in part.inputs:
        quantize = view.call(port.tensor.variable, "relax.quantize")
        if quantize is None or quantize.args[0] not in view.parameters:
            return None
        inputs.append(_tensor(str(quantize.args[0].name), port))
    for port in part.outputs:
        numbers = [
            number
            for number, each in enumerate(results)
            if (found := view.call(each, "relax.dequantize")) is not None and found.args[0] == port.tensor.variable
        ]
        if not numbers:
            return None
        outputs.append(_tensor(f"output {numbers[0]}", port))
    return {"inputs": inputs, "outputs": outputs} if len(outputs) == len(results) else None


def _tensor(name: str, port: Port) -> dict[str, Any]:
    tensor = port.tensor
    arrangement = {} if port.arrangement is None else {"arrangement": port.arrangement.description}
    return {
        "name": name,
        "shape": list(port.shape),
        "channels": "last" if port.last else "as in the model",
        "scale": tensor.scale,
        "zero": tensor.zero,
        **arrangement,
    }


def _names(left: Sequence[Expr]) -> list[str]:
    """The operators computed by the processor, without conversions between integers and floats."""
    names = [registered_name(value) for value in left]
    return [name.removeprefix("relax.").removeprefix("kernel.") for name in names if name and name not in _NOT_COUNTED]


def _summary(report: Mapping[str, Any]) -> list[str]:
    """The report as text."""
    operators, macs = (round(report[key]["share"] * 100) for key in ("operators", "macs"))
    lines = [f"{report['accelerator']}: {operators} % of the operators, {macs} % of the multiply-adds"]
    if costs := report.get("estimate"):
        lines += _costs(costs)
    if beside := report["operators"]["processor"]:
        lines.append("on the processor: " + ", ".join(f"{name} ({count})" for name, count in beside.items()))
    for entry in report["refused"]:
        lines.append(f"refused: {entry['operator']} ({entry['times']} times): {entry['reason']}")
    return lines


def _costs(costs: Mapping[str, Any]) -> list[str]:
    """The estimate as text, with the layers that take longest."""
    accessed, peak = (
        ", ".join(f"{name.replace('_', ' ')} {size:,}" for name, size in costs[key].items() if size)
        for key in ("bytes_accessed", "peak_bytes")
    )
    largest = sorted(costs["layers"], key=lambda layer: -int(layer["cycles"]))[:_LINES]
    return [
        f"estimate by Vela: {costs['cycles']:,} cycles, {costs['milliseconds']:.3f} ms ({costs['system']})",
        f"bytes accessed: {accessed}; at most in use: {peak}",
        f"estimate of the processor's part: {costs['processor_cycles']:,} of its cycles",
        *(
            f"  {layer['operator']} {layer['name']}: {layer['cycles']:,} cycles,"
            f" {round(layer['utilization'] * 100)} % of the multipliers"
            for layer in largest
        ),
        *([f"  and {len(costs['layers']) - _LINES} more"] if len(costs["layers"]) > _LINES else []),
    ]


def _processor_macs(view: View, steps: Mapping[Var, Step]) -> int:
    """Multiply-adds of convolutions and matmuls that are not in any step."""
    every = 0
    for _, value in view.bindings:
        name = operator_name(value)
        if name is None or name in _NOT_COUNTED:
            continue
        shape = _sizes(value)
        if name.startswith("relax.nn.conv") and shape is not None:
            weight = _sizes(value.args[1])
            every += math.prod(shape) * math.prod(weight[1:]) if weight is not None else 0
        elif name == "relax.matmul" and shape is not None:
            left = _sizes(value.args[0])
            every += math.prod(shape) * left[-1] if left is not None else 0
    products = ("convolution", "depthwise convolution", "fully connected", "transposed convolution")
    return max(0, every - sum(step.macs for step in steps.values() if step.operator in products))


def _sizes(expr: Expr) -> tuple[int, ...] | None:
    """The sizes of a tensor; None if dynamic."""
    try:
        return static_shape(expr)
    except Unsupported:
        return None


def estimate(compiled: Sequence[Compiled], accelerator: Accelerator, options: VelaOptions) -> dict[str, Any]:
    """Vela's totals and per-layer rows."""
    layers = [_layer(row) for each in compiled for row in each.layers]
    cycles = sum(layer["cycles"] for layer in layers)
    return {
        "source": "Vela 5.2's model of the hardware; not measured, not to be compared across accelerators",
        "system": accelerator.system,
        "memory_mode": options.memory(accelerator),
        "cycles": cycles,
        "milliseconds": cycles / accelerator.clock_mhz / 1000,
        "bytes_accessed": {
            name: sum(int(float(each.summary.get(f"{name}_total_bytes") or 0)) for each in compiled)
            for name in _MEMORIES
        },
        "peak_bytes": {name: max(_peak(each, name, options) for each in compiled) for name in _MEMORIES},
        "program_bytes": sum(len(each.program.commands) for each in compiled),
        "weight_bytes": sum(len(each.program.weights) for each in compiled),
        "layers": [layer for layer in layers if layer["cycles"]],
    }


def _peak(compiled: Compiled, memory: str, options: VelaOptions) -> int:
    """Bytes in use. Weights in SRAM are Vela's on-chip flash."""
    if options.weights_in_sram and memory == "on_chip_flash":
        return 0
    names = ("sram", "on_chip_flash") if options.weights_in_sram and memory == "sram" else (memory,)
    return sum(int(float(compiled.summary.get(f"{name}_memory_used") or 0) * 1024) for name in names)


_MEMORIES = ("sram", "dram", "on_chip_flash", "off_chip_flash")


def _layer(row: Mapping[str, str]) -> dict[str, Any]:
    def number(key: str) -> int:
        return int(float(row.get(key) or 0))

    return {
        "operator": row.get("Original Operator", ""),
        "name": row.get("Name", ""),
        "cycles": number("Op Cycles"),
        "macs": number("MAC Count"),
        "utilization": float(row.get("Util% (MAC)") or 0) / 100,
        "memory_cycles": max(number(f"{name} AC") for name in ("SRAM", "DRAM", "OnFlash", "OffFlash")),
    }


_MOVED = 3.0  # per byte that is read and written separately: a load, a store, an address
_COPIED = 0.25  # per byte of a copied row
_CONVERTED = 2.5  # per element converted between float32 and int8: scaled, rounded, saturated, four at a time
_COMPUTED = 4.0  # per element of any other float operator
_PRODUCT = 0.75  # per float multiply-add of a matmul or convolution
_PRODUCTS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul")
_CONVERSIONS = ("relax.quantize", "relax.dequantize", "relax.astype")


def processor_cycles(left: Sequence[Expr], parts: Sequence[Segment]) -> int:
    """Cycles of the calls that stay on the processor, and of passing tensors."""
    ports = sum(_handed(port) for part in parts for port in (*part.inputs, *part.outputs))
    return round(sum(_call(value) for value in left) + ports)


def _call(value: Expr) -> float:
    name, sizes = operator_name(value), _sizes(value)
    if sizes is None:
        return 0.0
    count = math.prod(sizes)
    if name in _CONVERSIONS:
        return _CONVERTED * count
    if name in _PRODUCTS and (weight := _sizes(value.args[1])) is not None and weight:
        depth = weight[-2] if name == "relax.matmul" and len(weight) > 1 else math.prod(weight[1:])
        return _PRODUCT * count * depth
    return _COMPUTED * count if name is not None else 0.0


def _handed(port: Port) -> float:
    """Bytes that are rearranged: channels moved to the end or back, and windows gathered."""
    shape = port.tensor.shape
    order = [axis for axis in channels_last(len(shape)) if shape[axis] != 1] if len(shape) > 1 else []
    moved = _MOVED * math.prod(shape) if port.last and order != sorted(order) else 0.0
    if port.arrangement is not None:
        moved += (_MOVED if port.arrangement.width > 1 else _COPIED) * math.prod(port.shape)
    return moved
