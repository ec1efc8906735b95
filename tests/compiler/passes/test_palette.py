"""Arrays of few values as indices and a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import schedules.engine  # noqa: F401  (loads the engine without torch)
from compiler.passes.palette import SMALLEST, Palette, find_palette, pack_bits

import tvm  # isort: skip
from tvm import relax  # isort: skip

Array = np.ndarray[Any, Any]


def _few_values(count: int, shape: tuple[int, ...], dtype: str = "float32") -> Array:
    random = np.random.default_rng(count)
    table = np.arange(count) if dtype != "float32" else random.standard_normal(count)
    array: Array = table.astype(dtype)[random.integers(0, count, shape)]
    array.reshape(-1)[:count] = table
    return array


def _expanded(palette: Palette) -> Array:
    builder = relax.BlockBuilder()
    parts = {"packed": palette.packed, "table": palette.table}
    params = [relax.Var(name, relax.TensorType(each.shape, str(each.dtype))) for name, each in parts.items()]
    with builder.function("main", params):
        builder.emit_func_output(builder.emit(builder.call_te(palette.kernel, *params)))
    machine = relax.VirtualMachine(tvm.compile(builder.get(), tvm.target.Target("llvm")), tvm.cpu())
    result: Array = machine["main"](*(tvm.runtime.tensor(each) for each in parts.values())).numpy()
    return result


@pytest.mark.parametrize(
    ("count", "bits"), [(1, 1), (2, 1), (3, 2), (8, 3), (16, 4), (17, 5), (33, 6), (128, 7), (256, 8)]
)
def test_every_width_comes_back_exactly(count: int, bits: int) -> None:
    array = _few_values(count, (17, 11, 31))
    palette = find_palette(array)
    assert palette is not None
    assert palette.bits == bits
    assert palette.nbytes <= array.size * bits / 8 + 2 + 4 * count
    np.testing.assert_array_equal(_expanded(palette), array)


def test_small_integers() -> None:
    array = _few_values(15, (4099,), "int8")
    palette = find_palette(array)
    assert palette is not None
    np.testing.assert_array_equal(_expanded(palette), array)


def test_values_are_told_apart_by_their_bits() -> None:
    array = np.zeros(SMALLEST, np.float32)
    array[1], array[2], array[3] = -0.0, np.nan, np.inf
    palette = find_palette(array)
    assert palette is not None
    got = _expanded(palette)
    np.testing.assert_array_equal(got.view(np.uint32), array.view(np.uint32))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(SMALLEST - 1, np.float32),
        np.arange(SMALLEST, dtype=np.float32),
        np.tile(np.arange(256, dtype=np.uint8), 64),
        np.zeros(SMALLEST, np.int64),
    ],
    ids=["small", "many values", "not smaller", "another type"],
)
def test_what_has_no_palette(array: Array) -> None:
    assert find_palette(array) is None


def test_a_value_between_the_samples_is_seen() -> None:
    """The first look takes a sample; what it does not see decides too."""
    array = _few_values(256, (1 << 16,))
    array[np.arange(3, 1 << 16, 128)] = np.arange(512)
    assert find_palette(array) is None


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_bits_against_shifts_of_one_large_integer(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, 1013).astype(np.uint8)
    packed = pack_bits(codes, bits)
    number = int.from_bytes(packed.tobytes(), "little")
    assert [number >> index * bits & (2**bits - 1) for index in range(len(codes))] == codes.tolist()
    assert len(packed) == -(-len(codes) * bits // 8) + 1
