"""Arrays of few distinct values are stored as codes and a palette."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.passes.schedule.store_compressed import _packed_palette, palette_codes

import tvm  # isort: skip
from tvm import relax  # isort: skip
from tests.unoptimized import unoptimized_machine

Array = np.ndarray[Any, Any]


def _few_values(count: int, shape: tuple[int, ...]) -> Array:
    random = np.random.default_rng(count)
    table = random.standard_normal(count).astype(np.float32)
    array: Array = table[random.integers(0, count, shape)]
    array.reshape(-1)[:count] = table
    return array


def _expanded(array: Array) -> Array | None:
    """The array as the module gets it back; None where nothing was packed."""
    packed = _packed_palette(array)
    if packed is None:
        return None
    builder = relax.BlockBuilder()
    params = [
        relax.Var(name, relax.TensorType(each.shape, str(each.dtype)))
        for name, each in zip(("codes", "palette"), packed.stored, strict=True)
    ]
    with builder.function("main", params):
        builder.emit_func_output(builder.emit(builder.call_te(packed.expand, *params)))
    machine = unoptimized_machine(builder.get())
    result: Array = machine["main"](*(tvm.runtime.tensor(each) for each in packed.stored)).numpy()
    return result


@pytest.mark.parametrize(
    ("count", "bits"), [(1, 1), (2, 1), (3, 2), (8, 3), (16, 4), (17, 5), (33, 6), (128, 7), (256, 8)]
)
def test_every_width_comes_back_exactly(count: int, bits: int) -> None:
    array = _few_values(count, (17, 11, 31))
    stored = palette_codes(array)
    assert stored is not None
    codes, palette = stored
    assert palette.size == 1 << bits
    assert codes.size == -(-array.size * bits // 8) + 1
    np.testing.assert_array_equal(_expanded(array), array)


def test_values_are_told_apart_by_their_bits() -> None:
    array = np.zeros(4096, np.float32)
    array[1], array[2], array[3] = -0.0, np.nan, np.inf
    got = _expanded(array)
    assert got is not None
    np.testing.assert_array_equal(got.view(np.uint32), array.view(np.uint32))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(1023, np.float32),
        np.arange(4096, dtype=np.float32),
        np.tile(np.arange(16, dtype=np.uint8), 400),
        np.zeros(4096, np.int64),
    ],
    ids=["small", "many values", "integers", "wide integers"],
)
def test_what_has_no_palette(array: Array) -> None:
    assert _packed_palette(array) is None


def test_a_value_between_the_samples_is_seen() -> None:
    """Values that the first check of a sample misses count too."""
    array = _few_values(256, (1 << 16,))
    array[np.arange(3, 1 << 16, 128)] = np.arange(512)
    assert palette_codes(array) is None


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_against_shifts_of_one_large_integer(bits: int) -> None:
    array = _few_values(1 << bits, (4099,))
    stored = palette_codes(array)
    assert stored is not None
    codes, palette = stored
    number = int.from_bytes(codes.tobytes(), "little")
    found = [palette[number >> index * bits & (2**bits - 1)] for index in range(array.size)]
    np.testing.assert_array_equal(found, array)
    assert codes.size == -(-array.size * bits // 8) + 1
