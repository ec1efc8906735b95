"""The summary line on the quantized part of a model."""

from __future__ import annotations

import pytest

from compiler.compression.quantization.report import LayerReport, QuantizationReport, Size


def report(*layers: LayerReport) -> QuantizationReport:
    size = Size(float_bytes=400, integer_bytes=100, float_seconds=2e-3, integer_seconds=1e-3)
    return QuantizationReport("host", "mse", (), "uint8", True, 4, 1.0, 0.99, 0.01, 0.05, 1, layers, size)


@pytest.mark.parametrize(
    ("integers", "floats", "expected"),
    [
        (2, [], "2 of 2 layers run in integers"),
        (
            2,
            ["slower in integers: 2 us, in float 1", "slower in integers: 3 us, in float 2"],
            "2 of 4 layers run in integers; in float: 2 slower in integers",
        ),
        (
            1,
            ["no constant weight", ""],
            "WARNING: only 1 of 3 layers run in integers; in float: 1 no constant weight, 1",
        ),
    ],
)
def test_summary(integers: int, floats: list[str], expected: str) -> None:
    made = report(
        *(LayerReport(f"q{index}", True) for index in range(integers)),
        *(LayerReport(f"f{index}", False, reason) for index, reason in enumerate(floats)),
    )
    assert made.summary.startswith(expected)
    assert "\n" not in made.summary
    assert str(made).startswith(f"static-int8: {made.summary}\n")
