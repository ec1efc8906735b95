"""Modules with equal parameters share one copy, within a process and across processes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)

from tvm import relax  # isort: skip

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import StorageError
from compiler.runtime import Module, load
from compiler.runtime.parameter_store import FOLDER_VARIABLE, ParameterStore, huge_pages, use_huge_pages
from compiler.runtime.tensors import empty_aligned
from tests.compiler.runtime.building import build_artifact

ROWS = 5000
Array = np.ndarray[Any, Any]


def table(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((ROWS, 4)).astype(np.float32)


def save(folder: Path, name: str, rows: int, tables: Mapping[str, Array]) -> Path:
    """Save a module for some rows of x, which adds x and the first rows of its tables."""
    artifact = build_artifact(
        [("x", (rows, 4), "float32")],
        [("y", (rows, 4), "float32")],
        lambda x, *tables: [_sum(x, rows, tables)],
        tables,
    )
    Module(artifact).export(folder / name)
    return folder / name


def _sum(x: Any, rows: int, tables: Any) -> Any:
    for each in tables:
        x = relax.op.add(x, relax.op.strided_slice(each, [0], [0], [rows]))
    return x


def addresses(module: Module) -> list[int]:
    """Addresses from which kernels read the parameters."""
    executor: Any = module._executor
    return [each.data_ptr() for each in executor._parameters]


def test_modules_of_the_same_weights_share_them(tmp_path: Path) -> None:
    weights = {"a": table(0), "b": table(1)}
    one = load(save(tmp_path, "one", 1, weights), threads=1)
    several = load(save(tmp_path, "several", 8, {"first": table(1), "other": table(2), "second": table(0)}), threads=1)
    assert addresses(several)[0] == addresses(one)[1]
    assert addresses(several)[2] == addresses(one)[0]
    assert addresses(several)[1] not in addresses(one)
    x = np.ones((8, 4), np.float32)
    expected = x + table(0)[:8] + table(1)[:8] + table(2)[:8]
    np.testing.assert_allclose(several.run([x])["y"], expected, rtol=1e-5, atol=1e-6)
    # The first one goes, with its file; what the second one shares stays.
    del one
    gc.collect()
    (tmp_path / "one").unlink()
    np.testing.assert_allclose(several.run([x])["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(several.parameters["first"], table(1))
    several.export(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "several").read_bytes()


def test_pages_of_a_second_file_are_given_back(tmp_path: Path) -> None:
    def resident(path: Path) -> int:
        """Bytes of a file that this process has in memory."""
        found, here = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if not line.split()[0].endswith(":"):
                here = line.endswith(str(path))
            elif here and line.startswith("Rss:"):
                found += int(line.split()[1]) * 1024
        return found

    big = {"a": np.random.default_rng(3).standard_normal((1 << 18, 4)).astype(np.float32)}
    paths = [save(tmp_path, name, 1, big) for name in ("one", "two")]
    modules = [load(path, threads=1) for path in paths]
    assert addresses(modules[0]) == addresses(modules[1])
    np.testing.assert_array_equal(modules[1].parameters["a"], big["a"])
    # Once for both: of the first file, or of the array that it was written from, where that still exists.
    assert sum(map(resident, paths)) < 1.25 * big["a"].nbytes


def test_what_nobody_uses_is_forgotten() -> None:
    store = ParameterStore()
    element = ELEMENT_TYPES["float32"]
    first, second, other = (empty_aligned((ROWS, 4), element) for _ in range(3))
    first[...] = second[...] = other[...] = table(0)
    other[ROWS // 2, 1] += 1
    kept = store.shared(first)
    shared = store.shared(second.view(np.int32).reshape(4, ROWS))
    assert np.shares_memory(shared, kept)
    assert (shared.dtype, shared.shape) == (np.dtype(np.int32), (4, ROWS))
    assert not np.shares_memory(store.shared(other), kept)
    del kept, shared, first
    assert store.shared(second) is second


CODE = """
import sys
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.runtime.parameter_store import PARAMETERS
from compiler.runtime.tensors import empty_aligned
made = empty_aligned((5000, 4), ELEMENT_TYPES["float32"])
made[...] = 7
shared = PARAMETERS.shared(made)
assert (shared == 7).all()
place = shared.ctypes.data
for line in open("/proc/self/maps"):
    start, end = (int(each, 16) for each in line.split()[0].split("-"))
    if start <= place < end:
        print(line.split()[4], line.split()[5], flush=True)
sys.stdin.read()
"""


def test_processes_share_what_lies_in_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    pipe = subprocess.PIPE
    environment = {**os.environ, FOLDER_VARIABLE: str(folder)}
    started = [
        subprocess.Popen([sys.executable, "-c", CODE], stdin=pipe, stdout=pipe, text=True, env=environment)
        for _ in range(3)
    ]
    said = [process.communicate("")[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    (file,) = folder.iterdir()
    assert said == [[str(file.stat().st_ino), str(file)]] * 3
    folder.chmod(0o755)
    refused = subprocess.run([sys.executable, "-c", CODE], input="", capture_output=True, text=True, env=environment)
    assert f"StorageError: {folder}, which {FOLDER_VARIABLE} names, can be read or written by others" in refused.stderr


def test_a_damaged_file_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "shared"))
    made = empty_aligned((ROWS, 4), ELEMENT_TYPES["float32"])
    made[...] = 3
    assert ParameterStore().shared(made) is not made
    (file,) = (tmp_path / "shared").iterdir()
    file.write_bytes(bytes(made.nbytes))
    assert ParameterStore().shared(made) is made
    monkeypatch.setenv(FOLDER_VARIABLE, str(file))
    with pytest.raises(StorageError, match="cannot be used"):
        ParameterStore().shared(made)


def test_huge_pages_are_those_that_neighbours_fill() -> None:
    size = 2 << 20
    memory = np.zeros(6 * size, np.uint8)
    first = -memory.ctypes.data % size  # of a huge page
    begin = memory.ctypes.data + first
    neighbours = [memory[first + 100 : first + size], memory[first + size + 64 : first + 3 * size + 5]]
    alone = memory[first + 3 * size + 8192 : first + 4 * size + 8192]
    assert huge_pages([alone, *reversed(neighbours)]) == [(begin + size, begin + 3 * size)]
    memory[:] = np.arange(memory.size, dtype=np.uint8)
    use_huge_pages([memory])
    np.testing.assert_array_equal(memory, np.arange(memory.size, dtype=np.uint8))
