"""Blocked tensors, kernels built from their tensor expressions, and float64 references: what these tests share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import schedules.ir.tir  # noqa: F401
from schedules import Machine
from schedules.ir.stages import Kernel
from schedules.selection.apply import apply_schedules
from schedules.stages.windows import separates_windows
from tests.schedules.harness import built

import tvm  # isort: skip
from tvm import te  # isort: skip

Array = NDArray[Any]

AVX512 = Machine(architecture="x86_64", vector_bits=512, vector_registers=32, l2_bytes=1 << 20, cores=2, fma_ports=1)
AVX2 = Machine(architecture="x86_64", vector_bits=256, vector_registers=16, l2_bytes=512 << 10, cores=2)
NEON = Machine(architecture="aarch64", vector_bits=128, vector_registers=32, l2_bytes=512 << 10, cores=4)
MACHINES = {"avx512": AVX512, "avx2": AVX2, "neon": NEON}

_GUARD = 4096  # elements around an output


def host() -> Any:
    """The processor of this machine; it runs what any of the descriptions asks for, if not as fast."""
    return tvm.target.Target(_host())


@cache
def _host() -> dict[str, Any]:
    return {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()}


def compiled(mod: Any) -> Any:
    """Kernels compiled for this machine."""
    return built(tvm.compile, mod, _host())


def blocks(channels: int, lanes: int) -> int:
    return -(-channels // lanes)


def pack(values: Array, lanes: int) -> Array:
    """(n, c, *spatial) -> (n, blocks, *spatial, lanes); the surplus lanes are NaN, which must not spread."""
    images, channels = values.shape[:2]
    count = blocks(channels, lanes)
    padding = [(0, 0), (0, count * lanes - channels)] + [(0, 0)] * (values.ndim - 2)
    padded = np.pad(values, padding, constant_values=np.nan)
    split = padded.reshape(images, count, lanes, *values.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def unpack(values: Array, channels: int) -> Array:
    """The inverse of `pack`."""
    moved = np.moveaxis(values, -1, 2)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])[:, :channels]


def pack_filter(weight: Array, in_lanes: int, lanes: int) -> Array:
    """(o, i, *kernel) -> (o blocks, i blocks, *kernel, in_lanes, lanes)."""
    filters, channels = weight.shape[:2]
    outer, inner = blocks(filters, lanes), blocks(channels, in_lanes)
    padding = [(0, outer * lanes - filters), (0, inner * in_lanes - channels)] + [(0, 0)] * (weight.ndim - 2)
    split = np.pad(weight, padding).reshape(outer, lanes, inner, in_lanes, *weight.shape[2:])
    return np.ascontiguousarray(np.moveaxis(np.moveaxis(split, 3, -1), 1, -1))


def pool_rule(tensors: Sequence[Any]) -> str:
    """The rule that serves a pooling: a general one if its windows are separated."""
    return "rows" if separates_windows(Kernel.of(te.create_prim_func(list(tensors)))) else "pool"


def run_scheduled(
    tensors: Sequence[Any], arrays: Sequence[Array], machine: Machine, rule: str, shape: Sequence[int]
) -> Array:
    """Schedule the tensor expression, see that `rule` served it and that it writes only its output, and return that."""
    function = te.create_prim_func(list(tensors)).with_attr("global_symbol", "main")
    scheduled, report = apply_schedules(tvm.IRModule({"main": function}), machine)
    assert not report.failures, report.failures
    assert [kernel.rule for kernel in report.kernels] == [rule]
    module = compiled(scheduled)
    size = int(np.prod(shape))
    room = tvm.runtime.tensor(np.full(_GUARD + size + _GUARD, 7, dtype="float32"))
    before, output, behind = np.split(np.from_dlpack(room), [_GUARD, _GUARD + size])
    output = output.reshape(shape)
    module["main"](*(tvm.runtime.tensor(array) for array in arrays), tvm.runtime.from_dlpack(output))
    assert (before == 7).all()
    assert (behind == 7).all()
    return output


def relu(value: Any) -> Any:
    """An elementwise stage behind a kernel."""
    zero = tvm.tirx.const(0, "float32")
    return te.compute(value.shape, lambda *point: tvm.tirx.max(value(*point), zero), name="relu")


def shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape)


def pad(values: Array, amounts: Sequence[tuple[int, int]]) -> Array:
    """Zeros around the spatial dimensions, in float64."""
    return np.pad(values.astype(np.float64), [(0, 0), (0, 0), *amounts])


def reference_conv(
    data: Array,
    weight: Array,
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: Sequence[tuple[int, int]],
    groups: int,
) -> Array:
    """A convolution in float64, written down from its definition with numpy alone."""
    padded = pad(data, padding)
    rank = data.ndim - 2
    kernel = weight.shape[2:]
    sizes = [(padded.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(rank)]
    filters, channels = weight.shape[:2]
    result = np.zeros((data.shape[0], filters, *sizes))
    for taps in np.ndindex(*kernel):
        window = tuple(
            slice(tap * dilations[i], tap * dilations[i] + (sizes[i] - 1) * strides[i] + 1, strides[i])
            for i, tap in enumerate(taps)
        )
        values = padded[(slice(None), slice(None), *window)]
        for group in range(groups):
            inputs = slice(group * channels, (group + 1) * channels)
            outputs = slice(group * filters // groups, (group + 1) * filters // groups)
            product = np.tensordot(weight[(outputs, slice(None), *taps)].astype(np.float64), values[:, inputs], (1, 1))
            result[:, outputs] += np.moveaxis(product, 1, 0)
    return result
