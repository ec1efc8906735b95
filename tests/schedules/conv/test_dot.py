"""Convolution of narrow operands by dot products: exact for integers, float32 sums of exact products for bfloat16, and
of a few steps of float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedules import Machine
from schedules.conv.dot import conv_dot
from schedules.conv.workload import DotWorkload
from schedules.instructions.dot_products.table import partial_operation
from schedules.instructions.rounding import bfloat16_bits
from schedules.selection.apply import apply_schedules
from tests.schedules.blocked import AVX2, AVX512, Array, blocks, compiled, host, reference_conv, shape_of, unpack
from tests.schedules.conv.test_direct import _COMMON, convolutions

import tvm  # isort: skip
from tvm import te  # isort: skip

_HOST = frozenset(str(name) for name in tvm.target.codegen.llvm_get_cpu_features(host()))
_DOTS = frozenset({"avx512vnni", "avx512vl", "avx512bw", "avx512bf16", "avx2"})
MACHINES = {
    "plain": AVX512,
    "avx2": AVX2.model_copy(update={"features": frozenset({"avx2"})}),
    "avxvnni": AVX2.model_copy(update={"features": frozenset({"avx2", "avxvnni"})}),
    "halves": AVX512.model_copy(update={"features": _DOTS | {"avx512fp16"}, "executed_features": frozenset({"avx2"})}),
    "dots": AVX512.model_copy(update={"features": _DOTS}),
}
RUNNABLE = [name for name, machine in MACHINES.items() if (machine.executed_features or machine.features) <= _HOST]
_CODES: dict[str, type[np.integer[Any]]] = {"uint8": np.uint8, "int8": np.int8}
HALVES = ("uint16", "float16")
KINDS = (*HALVES, *_CODES)


def pack(values: Array, lanes: int) -> Array:
    """(n, c, *spatial) -> blocks of lanes; the surplus holds all ones: as bfloat16, what is not a number."""
    images, channels = values.shape[:2]
    count = blocks(channels, lanes)
    ones = np.full(1, 0xFF, np.uint8).repeat(values.itemsize).view(values.dtype)[0]
    padding = [(0, 0), (0, count * lanes - channels)] + [(0, 0)] * (values.ndim - 2)
    padded = np.pad(values, padding, constant_values=ones)
    return np.ascontiguousarray(np.moveaxis(padded.reshape(images, count, lanes, *values.shape[2:]), 2, -1))


def pack_words(values: Array, group: int) -> Array:
    """(n, c, *spatial) -> int32 (n, groups, *spatial), the first channel lowest; int8 is made unsigned."""
    images, channels = values.shape[:2]
    bits = 32 // group
    bits_of = values.view(np.uint16) if values.dtype == np.float16 else values
    unsigned = bits_of.astype(np.int64) + (128 if values.dtype == np.int8 else 0)
    words = np.zeros((images, blocks(channels, group), *values.shape[2:]), np.int64)
    for channel in range(channels):
        words[:, channel // group] |= unsigned[:, channel] << (channel % group * bits)
    return words.astype(np.uint32).view(np.int32)


def pack_weight(weight: Array, in_lanes: int, lanes: int, group: int) -> Array:
    """(o, i, *kernel) -> (o blocks, i blocks, *kernel, in_lanes / group, lanes * group), element by element."""
    filters, channels, *kernel = weight.shape
    shape = (blocks(filters, lanes), blocks(channels, in_lanes), *kernel, in_lanes // group, lanes * group)
    packed = np.zeros(shape, weight.dtype)
    for o, i in np.ndindex(filters, channels):
        place = o % lanes * group + i % group
        packed[(o // lanes, i // in_lanes, ..., i % in_lanes // group, place)] = weight[o, i]
    return packed


def operands(rng: Any, kind: str, data: tuple[int, ...], weight: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
    """(stored data, stored weights, and the numbers that they stand for)."""
    if kind == "uint16":
        stored = [bfloat16_bits(rng.standard_normal(shape, dtype=np.float32)) for shape in (data, weight)]
        meant = [(each.astype(np.uint32) << 16).view(np.float32) for each in stored]
        return stored[0], stored[1], meant[0], meant[1]
    if kind == "float16":
        x, w = (rng.standard_normal(shape, dtype=np.float32).astype(np.float16) for shape in (data, weight))
        return x, w, x.astype(np.float32), w.astype(np.float32)
    code = _CODES[kind]
    limits = np.iinfo(code)
    x = rng.choice([limits.min, limits.max, 0, 1, 77], data).astype(code)
    w = rng.choice([-128, 127, -1, 0, 55], weight).astype(np.int8)
    return x, w, x.astype(np.int64), w.astype(np.int64)


def run_kernel(tensors: list[Any], arrays: list[Array], machine: Machine, rule: str) -> Array:
    """Schedule the tensor expression, see that `rule` served it, run it, and return the output."""
    function = te.create_prim_func(tensors).with_attr("global_symbol", "main")
    scheduled, report = apply_schedules(tvm.IRModule({"main": function}), machine)
    assert not report.failures, report.failures
    assert [kernel.rule for kernel in report.kernels] == [rule]
    module = compiled(scheduled)
    output = tvm.runtime.tensor(np.full(shape_of(tensors[-1]), 7, str(tensors[-1].dtype)))
    module["main"](*(tvm.runtime.tensor(each) for each in arrays), output)
    return output.numpy()


def check(machine: Machine, kind: str, case: dict[str, Any], groups: int = 1, in_lanes: int = 0, fill: int = 0) -> None:
    lanes = machine.lanes("float32")
    in_lanes = in_lanes or lanes
    dtype = "float32" if kind in HALVES else "int32"
    names = ("batch", "channels", "spatial", "kernel", "strides", "dilations", "pad", "filters")
    fields = {name: case[name] for name in names}
    fields["pad"] = tuple(fields["pad"])
    work = DotWorkload(**fields, block=lanes, dtype=dtype, groups=groups, in_block=in_lanes, operand=kind, fill=fill)
    rank = work.rank
    place = (work.batch, blocks(work.channels, in_lanes), *work.spatial)
    data = te.placeholder(place, "int32", name="data")
    if not work.words:
        data = te.placeholder((*place, in_lanes), kind, name="data")
    code = kind if kind in HALVES else "int8"
    weight_shape = (work.out_blocks, work.in_blocks, *work.kernel, in_lanes // work.group, lanes * work.group)
    weight = te.placeholder(weight_shape, code, name="weight")
    conv = conv_dot(data, weight, work)
    doubled = te.compute(conv.shape, lambda *at: conv(*at) + conv(*at), name="doubled")
    rng = np.random.default_rng(0)
    x, w, x_meant, w_meant = operands(
        rng, kind, (work.batch, work.channels, *work.spatial), (work.filters, work.group_channels, *work.kernel)
    )
    stored = pack_words(x, work.group) if work.words else pack(x, in_lanes)
    packed = [stored, pack_weight(w, in_lanes, lanes, work.group)]
    got = unpack(run_kernel([data, weight, doubled], packed, machine, "conv-dot"), work.filters) / 2
    shift = 128 if kind == "int8" else 0
    amounts = [(0, 0), (0, 0), *work.pad]
    whole = np.pad(x_meant.astype(np.float64) + shift, amounts, constant_values=fill + shift)
    expected = reference_conv(whole, w_meant, work.strides, work.dilations, [(0, 0)] * rank, groups)
    if kind not in HALVES:
        np.testing.assert_array_equal(got, expected)
        return
    # Products of bfloat16 are exact in float32; each addition rounds once. Sums of some 70 steps in float16, of values
    # of 8, err by 0.02 (half of 2^-8, 70 times, by chance).
    terms = work.group_channels * np.prod(work.kernel)
    in_float16 = partial_operation(machine, work.operation) is not None
    atol = 8e-3 * terms**0.5 if in_float16 else 2e-7 * terms + 1e-6
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("machine", RUNNABLE)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=convolutions(), fill=st.integers(0, 127))
def test_random_shapes(machine: str, kind: str, case: dict[str, Any], fill: int) -> None:
    check(MACHINES[machine], kind, case, fill=0 if kind in HALVES else fill)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_words_and_small_blocks(kind: str) -> None:
    machine = MACHINES[RUNNABLE[-1]]
    check(machine, kind, {**_COMMON, "channels": 32 * 3, "filters": 16 * 3}, groups=3)
    check(
        machine,
        kind,
        {**_COMMON, "channels": 3, "filters": 20, "strides": (2, 2)},
        in_lanes=2 if kind in HALVES else 4,
    )
    check(machine, kind, {**_COMMON, "channels": 9, "filters": 7}, in_lanes=8)


@pytest.mark.skipif("halves" not in RUNNABLE, reason="this machine has no AVX2")
def test_float16_of_large_windows() -> None:
    check(MACHINES["halves"], "float16", {**_COMMON, "channels": 40, "filters": 20, "kernel": (5, 5)})


@pytest.mark.skipif("dots" not in RUNNABLE, reason="this machine has no dot products")
@pytest.mark.parametrize(("kind", "instruction"), [("uint16", "vdpbf16ps"), ("uint8", "vpdpbusd")])
def test_the_inner_loop_is_the_instruction(kind: str, instruction: str) -> None:
    work = DotWorkload(
        1, 32, 16, (8, 14), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), "float32" if kind == "uint16" else "int32",
        64, 1, 16, operand=kind,
    )  # fmt: skip
    data = te.placeholder((1, 2, 8, 14, 16), kind, name="data")
    code = "uint16" if kind == "uint16" else "int8"
    weight = te.placeholder((4, 2, 3, 3, 16 // work.group, 16 * work.group), code, name="weight")
    function = te.create_prim_func([data, weight, conv_dot(data, weight, work)]).with_attr("global_symbol", "main")
    scheduled, _ = apply_schedules(tvm.IRModule({"main": function}), MACHINES["dots"])
    lines = str(tvm.compile(scheduled, target=host()).mod.inspect_source("asm")).splitlines()
    found = [line for line in lines if instruction in line]
    assert len(found) >= 14
    assert all("%zmm" in line for line in found)
