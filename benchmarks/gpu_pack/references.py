"""Expected results as a few numbers, and their tolerances."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu_pack.generator import positions
from benchmarks.gpu_pack.seeded import Array

SAMPLE_SEED = 1
SAMPLES = 4096

# Differences of a net's result: root mean square, over that of the result (the C++ side allows single elements 8 times
# as much). float32: sums in another order; two right executors differ by 1e-6 to 1e-5. float16 and bf16 round the
# operands of each layer to 11 and 8 bits, deviations of some 2^-12 and 2^-9; independent errors of L layers grow by
# sqrt(2 L), 10 for 50 layers, and a factor of 4 is left for layers that amplify. int8: where a tie is rounded
# otherwise, a tensor differs by a step of 1/255 of its range.
NETS = {"float32": 1e-4, "float16": 1e-2, "bf16": 8e-2, "int8": 8e-2}
# Tolerance of a kernel's result against the simulation, which rounds in the same way and sums in another order;
# differences of earlier kernels add up.
CALLS = {"float32": 1e-4, "float16": 5e-3, "bf16": 4e-2, "int8": 5e-2}


def summary(array: Array, samples: int = SAMPLES) -> Array:
    """Return float64 (3 + samples,): root mean square, largest magnitude, number of NaN, elements at random positions;
    like `Summarize` of the C++ side."""
    flat = array.ravel().astype(np.float64)
    numbers = flat[~np.isnan(flat)]
    rms = np.sqrt(np.square(numbers).sum() / flat.size) if flat.size else 0.0
    largest = np.abs(numbers).max(initial=0.0)
    head = [rms, largest, flat.size - numbers.size]
    return np.concatenate([head, flat[positions(SAMPLE_SEED, samples, flat.size)]])


def reference(name: str, array: Array, samples: int = SAMPLES) -> tuple[dict[str, Any], bytes]:
    """Return the description of a result, and its summary."""
    numbers = summary(array, samples)
    described = {"name": name, "shape": list(array.shape), "samples": numbers.size - 3}
    return described, numbers.tobytes()


def tolerance(*, relative: float = 0.0, absolute: float = 0.0, rms: float = 0.0) -> dict[str, float]:
    """Return a tolerance for the C++ side (`Tolerance`)."""
    return {"relative": relative, "absolute": absolute, "rms": rms}
