"""Resizing and signal operators: sizes, scales and lengths are values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.fuzz.hostile.catalog import Array, Onnx, floats, hostile_sizes, ints, node, placed, scalar


def _images() -> Iterator[Onnx]:
    image = floats(1, 1, 4, 4)
    sizes = ints(1, 1, 6, 6)
    for mode in ("nearest", "linear", "cubic"):
        yield Onnx(
            f"Resize {mode} sizes",
            [node("Resize", ["x", "", "", "s"], ["y"], mode=mode)],
            {"x": image, "s": sizes},
            [
                *placed(sizes, hostile_sizes(), "s"),
                ("x of height 0", {"x": floats(1, 1, 0, 4)}),
                ("x of 1x1", {"x": floats(1, 1, 1, 1)}),
            ],
            hidden=["s"],
            dims={"s": [4]},
        )
        yield Onnx(
            f"Resize {mode} constant scales",
            [node("Resize", ["x", "", "f"], ["y"], mode=mode)],
            {"x": image},
            [(f"x{list(size)}", {"x": floats(1, 1, *size)}) for size in [(0, 4), (1, 1), (4, 0), (3, 100)]],
            constants={"f": np.array([1, 1, 1.5, 0.3], np.float32)},
        )
    yield Onnx(
        "Resize crop",
        [
            node(
                "Resize", ["x", "r", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="tf_crop_and_resize"
            )
        ],
        {"x": image, "s": sizes},
        [*placed(sizes, hostile_sizes(), "s"), ("x of height 0", {"x": floats(1, 1, 0, 4)})],
        dims={"s": [4]},
        constants={"r": np.array([0, 0, -5, 0, 1, 1, 9, 1], np.float32)},
    )
    yield Onnx(
        "AffineGrid",
        [node("AffineGrid", ["t", "s"], ["y"])],
        {"t": floats(1, 2, 3), "s": ints(1, 1, 3, 4)},
        [*placed(ints(1, 1, 3, 4), hostile_sizes(), "s"), ("t of 2", {"t": floats(2, 2, 3)})],
        hidden=["s"],
        dims={"s": [4], "t": ["n", 2, 3]},
    )
    yield Onnx(
        "Col2Im",
        [node("Col2Im", ["x", "s", "b"], ["y"])],
        {"x": floats(1, 4, 9), "s": ints(4, 4), "b": ints(2, 2)},
        [
            *placed(ints(4, 4), hostile_sizes(), "s"),
            *placed(ints(2, 2), hostile_sizes(), "b"),
            ("x of fewer columns", {"x": floats(1, 4, 8)}),
            ("x of 3 channels", {"x": floats(1, 3, 9)}),
        ],
        dims={"s": [2], "b": [2]},
    )


def _signals() -> Iterator[Onnx]:
    wave = floats(1, 16, 1)
    yield Onnx(
        "DFT length",
        [node("DFT", ["x", "n"], ["y"])],
        {"x": wave, "n": scalar(8)},
        # Not a million: there ONNX Runtime's error is 0.4 of the largest value, ours 3e-7 (against float64).
        placed(scalar(8), [size for size in hostile_sizes() if size != 10**6], "n"),
        hidden=["n"],
        dims={"x": ["b", 16, 1], "n": []},
        opset=20,
    )
    steps = {"step": scalar(4), "length": scalar(8)}
    yield Onnx(
        "STFT",
        [node("STFT", ["x", "step", "", "length"], ["y"])],
        {"x": wave, **steps},
        [
            *placed(steps["step"], hostile_sizes(), "step"),
            *placed(steps["length"], [17, *hostile_sizes()], "length"),
            ("x of 4", {"x": floats(1, 4, 1)}),
        ],
        dims={"x": ["b", "t", 1]},
    )
    window: dict[str, Array] = {"x": wave, "w": floats(8)}
    yield Onnx(
        "STFT window",
        [node("STFT", ["x", "step", "w"], ["y"])],
        window,
        [("w of 17", {"w": floats(17)}), ("w of 0", {"w": floats(0)}), ("x of 4", {"x": floats(1, 4, 1)})],
        dims={"x": ["b", "t", 1]},
        constants={"step": scalar(4)},
    )
    for name in ("HannWindow", "BlackmanWindow", "HammingWindow"):
        yield Onnx(
            name,
            [node(name, ["n"], ["y"])],
            {"n": scalar(8)},
            placed(scalar(8), hostile_sizes(), "n"),
            hidden=["n"],
        )
    yield Onnx(
        "MelWeightMatrix",
        [node("MelWeightMatrix", ["m", "n", "r", "lo", "hi"], ["y"])],
        {
            "m": scalar(4),
            "n": scalar(16),
            "r": scalar(8000),
            "lo": scalar(0.0, "float32"),
            "hi": scalar(4000.0, "float32"),
        },
        [
            *placed(scalar(4), hostile_sizes(), "m"),
            *placed(scalar(16), hostile_sizes(), "n"),
            *placed(scalar(8000), hostile_sizes(), "r"),
            *((f"hi={v}", {"hi": scalar(v, "float32")}) for v in (np.nan, np.inf, -1.0, 0.0, 1e30)),
            *((f"lo={v}", {"lo": scalar(v, "float32")}) for v in (np.nan, np.inf, -1.0, 1e30)),
        ],
    )


def graphs() -> Iterator[Onnx]:
    """All models of this file."""
    for group in (_images, _signals):
        yield from group()
