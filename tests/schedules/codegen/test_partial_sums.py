"""Long sums are added in parts: errors against float64, and the sizes of parts."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

import compiler
from schedules.codegen.register_tile import PART, steps_of_part


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 31, 64, 97, 128, 1000, 4096, 25088])
@pytest.mark.parametrize("terms", [1, 16, 144, 400])
def test_parts_are_near_what_is_wanted(steps: int, terms: int) -> None:
    part = steps_of_part(steps, terms)
    if steps * terms <= PART:
        assert part == steps
    elif part < steps:
        assert part == 1 or PART / 2 <= part * terms <= 2 * PART
    else:
        assert steps * terms <= 2 * PART or steps == 1


def _rms(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("rows", [1, 24])
@pytest.mark.parametrize("depth", [2048, 2500])
def test_matrix_products_of_great_depth(rows: int, depth: int) -> None:
    """One sum of 2048 terms has an error of 6e-7."""
    rng = np.random.default_rng(depth)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, depth), (depth, 96)))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> agraph (float[{rows},{depth}] x) => (float[{rows},96] y) '
        f"<float[{depth},96] w> {{ y = MatMul(x, w) }}"
    )
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    found = compiler.compile(model, threads=1, progress=None).run([x])["y"]
    assert _rms(found, x.astype(np.float64) @ w.astype(np.float64)) < 3.2e-7


@pytest.mark.parametrize(("channels", "kernel"), [(600, 1), (72, 5)])
def test_direct_convolutions_of_many_terms(channels: int, kernel: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((1, channels, 9, 9)).astype(np.float32)
    w = rng.standard_normal((40, channels, kernel, kernel)).astype(np.float32)
    size = 10 - kernel
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> agraph (float[1,{channels},9,9] x) => (float[1,40,{size},{size}] y) '
        f"<float[40,{channels},{kernel},{kernel}] w> {{ y = Conv(x, w) }}"
    )
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    found = compiler.compile(model, threads=1, progress=None).run([x])["y"]
    expected = torch.nn.functional.conv2d(torch.from_numpy(x).double(), torch.from_numpy(w).double()).numpy()
    assert _rms(found, expected) < 4e-7
