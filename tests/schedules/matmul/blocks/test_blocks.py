"""Products with block-quantized and 16-bit weights, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from compiler.passes.rewriting.block_weights import BlockWeight, block_product
from schedules.instructions.unpack_bits import TABLES
from schedules.ir.tir import tirx, tvm
from schedules.matmul.blocks.expressions import BlockFormat
from tests.schedules.harness import AVX2, AVX512, Array, normal, run, runnable, scheduled, target_of, virtual_machine

TILES = "sapphire-rapids-simulated"
GROUP_TYPES = {"scale": np.float16, "minimum": np.float16, "scale_integers": np.int8, "minimum_integers": np.uint8}
FORMATS = {
    "4 bits": BlockFormat(4, 32, zero=8),
    "4 bits and minimums": BlockFormat(4, 32, minimum=True),
    "8 bits": BlockFormat(8, 32, zero=128),
    "5 bits, super groups": BlockFormat(5, 32, minimum=True, super_groups=8),
    "6 bits, super groups of 16": BlockFormat(6, 16, zero=32, super_groups=16),
    "4 bits, long groups, zero points": BlockFormat(4, 128, zeros=True),
    "3 bits, short groups": BlockFormat(3, 8, zero=4),
}


def random_weight(layout: BlockFormat, columns: int, depth: int) -> tuple[BlockWeight, Array]:
    """A weight, and the float64 matrix (depth, columns) that it is."""
    generator = np.random.default_rng(columns * depth)
    values = generator.integers(0, 1 << layout.bits, (columns, depth)).astype(np.uint8)
    groups, numbers = layout.padded_depth(depth) // layout.group, {}
    wide = {"scale": np.ones((columns, groups)), "minimum": np.zeros((columns, groups))}
    for name in layout.arrays[len(layout.planes) :]:
        plain = name in ("scale", "minimum")
        count = groups // (layout.super_groups or 1) if plain else groups
        limits = (-1.0, 1.0) if plain else (0.0, 16.0)
        each = generator.uniform(*limits, (columns, count)).astype(GROUP_TYPES.get(name, np.uint8))
        numbers[name] = each
        spread = np.repeat(each.astype(np.float64), groups // count, 1)
        known = name.removesuffix("_integers")
        wide[known] = spread if plain or name == "zeros" else wide[known] * spread
    zeros = wide.get("zeros", np.full((columns, groups), layout.zero))
    scale, zero, minimum = (
        np.repeat(each, layout.group, 1)[:, :depth] for each in (wide["scale"], zeros, wide["minimum"])
    )
    return BlockWeight.of_blocks(layout, values, numbers), (scale * (values - zero) + minimum).T


def rounded(data: Array, unit: int) -> Array:
    """The data with each unit of neighbours rounded to bytes, as float64."""
    rows, depth = data.shape
    padded = np.zeros((rows, -(-depth // unit) * unit), np.float32)
    padded[:, :depth] = data
    units = padded.reshape(rows, padded.shape[1] // unit, unit)
    maximum = np.abs(units).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), maximum, where=maximum > 0, out=np.zeros_like(maximum))
    scale = (maximum * np.float32(1 / 127)).astype(np.float64)
    return np.asarray((np.rint(units * inverse) * scale).reshape(padded.shape)[:, :depth])


def product(weight: BlockWeight, activations: str) -> Any:
    def build(builder: Any, data: Any) -> Any:
        return builder.emit(
            relax.op.add(block_product(builder, data, weight, activations), relax.const(1.0, "float32"))
        )

    return build


def check(
    weight: BlockWeight, wide: Array, activations: str, target: str, rows: tuple[int, ...] = (0, 1, 2, 7, 128, 513)
) -> None:
    """One module for any number of rows, run with several."""
    shape = (tirx.Var("n", "int64"), weight.depth)
    mod, report = scheduled(product(weight, activations), [(shape, "float32")], target)
    assert report.by_rule().get("block-matmul"), report
    assert activations != "int8" or report.by_rule().get("block-round"), report
    machine = virtual_machine(mod, target)
    for count in rows:
        data = normal((count, weight.depth), seed=count)
        seen = rounded(data, weight.layout.unit) if activations == "int8" else data.astype(np.float64)
        got = machine["main"](tvm.runtime.tensor(data)).numpy()
        # Integers, zero points and minimums are multiplied apart, so rounding is that of the greatest elements.
        bound = 4e-6 * (np.abs(seen).sum(1, keepdims=True) * np.abs(wide).max() + 1)
        assert np.all(np.abs(got - (seen @ wide + 1)) <= bound), count


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.skipif(AVX512 not in runnable(), reason="this machine has no AVX-512")
def test_formats_with_rounded_data(name: str) -> None:
    depth = 256 if FORMATS[name].super_groups else 160
    check(*random_weight(FORMATS[name], 32, depth), "int8", AVX512)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.skipif(not target_of(TILES).fits_this_machine(), reason="this machine has no AVX2")
def test_formats_in_tiles(name: str) -> None:
    depth = 256 if FORMATS[name].super_groups else 160
    check(*random_weight(FORMATS[name], 41, depth), "int8", TILES, (0, 1, 15, 16, 29, 300))


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize(("columns", "depth"), [(41, 76), (5, 12)])
def test_odd_sizes(target: str, columns: int, depth: int) -> None:
    check(*random_weight(FORMATS["4 bits, long groups, zero points"], columns, depth), "int8", target, (1, 9))


@pytest.mark.parametrize("name", ["4 bits and minimums", "6 bits, super groups of 16"])
@pytest.mark.skipif(AVX512 not in runnable(), reason="this machine has no AVX-512")
def test_formats_with_float32_data(name: str) -> None:
    check(*random_weight(FORMATS[name], 32, 256), "float32", AVX512, (1, 9))


@pytest.mark.parametrize("numbers", ["bfloat16", "float16", "float32"])
@pytest.mark.skipif(AVX2 not in runnable(), reason="this machine has no AVX2")
def test_plain_numbers(numbers: str) -> None:
    import ml_dtypes

    values = normal((40, 77))
    wide = values.astype(ml_dtypes.bfloat16 if numbers == "bfloat16" else numbers).astype(np.float64).T
    check(BlockWeight.of_floats(values, numbers), wide, "float32", AVX2, (1, 9))


@pytest.mark.parametrize("target", runnable())
def test_bfloat16_weights_and_data(target: str) -> None:
    import ml_dtypes

    values, data = normal((40, 78)), normal((3, 78), seed=1)
    weight = BlockWeight.of_floats(values, "bfloat16")
    mod, _ = scheduled(product(weight, "bfloat16"), [(data.shape, "float32")], target)
    wide, seen = (each.astype(ml_dtypes.bfloat16).astype(np.float64) for each in (values, data))
    np.testing.assert_allclose(run(mod, target, [data]), seen @ wide.T + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("target", runnable())
def test_rounding_passes_nan_on(target: str, bad: float) -> None:
    weight, _ = random_weight(FORMATS["8 bits"], 32, 64)
    data = normal((2, 64))
    data[1, 40] = bad
    mod, _ = scheduled(product(weight, "int8"), [(data.shape, "float32")], target)
    got = run(mod, target, [data])
    assert np.all(np.isfinite(got[0]))
    assert not np.any(np.isfinite(got[1]))


@pytest.mark.skipif(AVX512 not in runnable(), reason="this machine has no AVX-512")
def test_arrays_of_equal_content() -> None:
    """They are one constant, and one parameter of the kernel."""
    weight, _ = random_weight(FORMATS["4 bits and minimums"], 32, 32)
    scale = weight.constants()[1]
    weight.constants()[2] = scale
    _, report = scheduled(product(weight, "int8"), [((1, 32), "float32")], AVX512)
    assert report.by_rule().get("block-matmul"), report


def test_joined_weights_are_those_side_by_side() -> None:
    layout = FORMATS["4 bits"]
    parts = [random_weight(layout, columns, 64)[0] for columns in (32, 64)]
    joined = BlockWeight.joined(parts)
    assert (joined.columns, joined.arrays[0].shape[0]) == (96, 3)
    with pytest.raises(ValueError, match="cannot be joined"):
        BlockWeight.joined([parts[0], random_weight(layout, 40, 64)[0]])


@pytest.mark.parametrize("signed", [False, True])
def test_integers_keep_their_numbers(signed: bool) -> None:
    generator = np.random.default_rng(0)
    limits = (-8, 8) if signed else (0, 16)
    values = generator.integers(*limits, (8, 100)).astype(np.int8 if signed else np.uint8)
    scales = generator.uniform(0.5, 2, (8, 3)).astype(np.float32)
    zeros = generator.integers(*limits, (8, 3)).astype(values.dtype)
    weight = BlockWeight.of_integers(values, scales, zeros, 48, 4)
    assert weight.layout == BlockFormat(4, 16, zeros=True)
    with pytest.raises(ValueError, match="multiple of 4"):
        BlockWeight.of_integers(values, scales, zeros, 42, 4)


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("code", ["nf4", "a table of its own", "float8_e4m3fn", "float8_e5m2"])
def test_integers_that_stand_for_numbers(code: str, target: str) -> None:
    import ml_dtypes  # noqa: F401  (numpy's types of 8 bits, by name)

    random, columns, depth, group = np.random.default_rng(5), 41, 100, 32
    tables = {"nf4": TABLES["nf4"], "a table of its own": tuple(random.standard_normal(16).astype(np.float32).tolist())}
    table = tables.get(code)
    values = random.integers(0, 16 if table else 0x70, (columns, depth)).astype(np.uint8)
    scales = random.uniform(0.5, 1, (columns, -(-depth // group))).astype(np.float16)
    numbers = values.view(code).astype(np.float64) if table is None else np.array(table)[values]
    wide = numbers * np.repeat(scales.astype(np.float64), group, 1)[:, :depth]
    check(BlockWeight.of_codes(values, scales, group, table or code), wide.T, "float32", target, (1, 9))
