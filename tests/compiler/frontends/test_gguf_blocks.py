"""Blocks of GGUF files: every element equals the `gguf` package's result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from compiler.errors import InvalidModelError
from compiler.frontends.gguf_blocks import BLOCK_SIZES, read_gguf_blocks, readable_types
from compiler.passes.rewriting.block_weights import block_rows
from schedules.ir.tir import tvm
from tests.schedules.harness import Array
from tests.unoptimized import unoptimized_machine

gguf = pytest.importorskip("gguf")

COLUMNS, DEPTH = 40, 512


def random_blocks(name: str) -> Array:
    """Random bytes of a type, (COLUMNS, bytes of a row)."""
    generator = np.random.default_rng(1)
    kind = gguf.GGMLQuantizationType[name]
    if name in ("F32", "F16", "BF16"):
        return np.asarray(gguf.quants.quantize(generator.standard_normal((COLUMNS, DEPTH)).astype(np.float32), kind))
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    raw = generator.integers(0, 256, (COLUMNS * DEPTH // elements, size), dtype=np.uint8)
    for at in BLOCK_SIZES.get(name, (0, 0, (0,)))[2]:  # the rest may be any bytes
        half = generator.uniform(-0.1, 0.1, len(raw)).astype(np.float16)
        raw[:, at : at + 2] = half.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":
        raw[:, 0] = generator.integers(90, 140, len(raw))
    return raw.reshape(COLUMNS, -1)


def test_elements_equal_those_of_the_package() -> None:
    raws = {name: random_blocks(name) for name in readable_types()}
    builder = relax.BlockBuilder()
    places: Any = relax.Var("places", relax.TensorType([3, COLUMNS], "int64"))
    with builder.function("main", [places]):
        with builder.dataflow():
            weights = [read_gguf_blocks(raw, name, (COLUMNS, DEPTH)) for name, raw in raws.items()]
            output = builder.emit_output([block_rows(builder, places, weight) for weight in weights])
        builder.emit_func_output(output)
    machine = unoptimized_machine(builder.get())
    asked = np.random.default_rng(0).permutation(3 * COLUMNS).reshape(3, COLUMNS) - COLUMNS
    results = machine["main"](tvm.runtime.tensor(asked))
    for (name, raw), result in zip(raws.items(), results, strict=True):
        wide = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        np.testing.assert_array_equal(result.numpy(), wide[np.clip(asked, 0, COLUMNS - 1)], err_msg=name)


@pytest.mark.parametrize(
    ("name", "depth", "message"),
    [("IQ2_XS", 512, "not supported"), ("Q4_K", 480, "not a multiple of 256"), ("Q8_0", 480, "damaged or truncated")],
)
def test_what_does_not_fit_is_refused(name: str, depth: int, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        read_gguf_blocks(random_blocks("Q8_0"), name, (COLUMNS, depth))
