"""Arrays that a run returns: statistics, and saving them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact.storage import write_atomically


def describe_arrays(arrays: Mapping[str, object]) -> list[dict[str, Any]]:
    """Name, dtype, shape, least, greatest and mean value (of those that are finite; None where there are none), and
    how many are NaN or infinite."""
    return [_describe(name, np.asarray(array)) for name, array in arrays.items()]


def _describe(name: str, array: np.ndarray) -> dict[str, Any]:
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    return {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "mean": float(finite.mean()) if finite.size else None,
        "nan": int(np.isnan(values).sum()),
        "infinite": int(np.isinf(values).sum()),
    }


def save_arrays(arrays: Mapping[str, object], path: Path) -> None:
    """Write arrays as an .npz archive, whole or not at all. Types that numpy has no name for become float32.

    Raises:
        StorageError: the file cannot be written.
    """
    stored: dict[str, Any] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        stored[name] = array.astype(np.float32) if array.dtype.kind == "V" else array
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    write_atomically(path, [buffer.getvalue()])
