"""The C API and the runner, compared with Python: the same input checks, and modules shared by several threads."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import targets
import tensorwright
from compiler.artifact.tensors import Blob
from compiler.device.programs import device_programs
from compiler.runtime.library import POOL
from tests.compiler.device.c_library import CallError, CModule
from tests.compiler.runtime.building import MEGABYTE, squares

ROWS, WIDTH = 50, 8


def embedding() -> onnx.ModelProto:
    """Ids that select rows of a table, and a matmul with them."""
    generator = np.random.default_rng(0)
    weights = {"table": (ROWS, WIDTH), "weight": (WIDTH, WIDTH)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [
            numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def module() -> tensorwright.Module:
    return tensorwright.compile(embedding(), threads=2, progress=None)


@pytest.fixture(scope="module")
def path(module: tensorwright.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c_api") / "module.twm"
    module.export(path)
    return path


@pytest.fixture
def loaded(path: Path) -> Iterator[CModule]:
    loaded = CModule(path)
    yield loaded
    loaded.free()


def ids(*values: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"ids": np.array(values, np.int64)}


@pytest.mark.parametrize("wrong", [999_999, ROWS, -ROWS - 1])
def test_every_door_refuses_an_index_outside_its_axis(
    wrong: int, module: tensorwright.Module, loaded: CModule, path: Path, tmp_path: Path
) -> None:
    inputs = ids(3, wrong, 0)
    with pytest.raises(tensorwright.errors.InputError) as python:
        module.run(inputs)
    message = f"input 'ids' holds the index {wrong}, outside of [-{ROWS}, {ROWS})"
    assert message in str(python.value)
    with pytest.raises(CallError) as c:
        loaded.run(inputs)
    assert str(c.value) == str(python.value)
    (tmp_path / "inputs").write_bytes(b"".join(map(bytes, Blob(inputs).pieces)))
    runner = device_programs(targets.get("host", cores=1)) / "tensorwright-run"
    done = subprocess.run([runner, path, "--inputs", tmp_path / "inputs"], capture_output=True, text=True, check=False)
    assert (done.returncode, message in done.stderr) == (1, True)
    np.testing.assert_allclose(loaded.run(ids(3, -ROWS))[0], module.run(ids(3, -ROWS))["y"], rtol=1e-5, atol=1e-6)


def test_threads_share_a_module(module: tensorwright.Module, path: Path) -> None:
    first = CModule(path)
    shared = [CModule(None, first) for _ in range(6)]
    first.free()  # the others keep what they share
    for number, each in enumerate(shared):
        each.set_threads(1 + number % 2)

    def call(each: CModule) -> list[np.ndarray[Any, Any]]:
        return [each.run(ids(*range(n, n + 9)))[0] for n in range(30)]

    with ThreadPoolExecutor(len(shared)) as pool:
        results = list(pool.map(call, shared))
    for n, rows in enumerate(zip(*results, strict=True)):
        expected = module.run(ids(*range(n, n + 9)))["y"]
        for each in rows:
            np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)
    for each in shared:
        each.free()


def test_a_number_of_threads_that_the_machine_does_not_serve(loaded: CModule) -> None:
    for threads in (0, -1, 100_000):
        with pytest.raises(CallError, match=f"threads must be a number from 1 to .*, not {threads}"):
            loaded.set_threads(threads)


def _large(path: Path, bias: float) -> np.ndarray[Any, Any]:
    """Write a module y = x @ w + bias whose weights are 4 MB, and return its y for ones."""
    weight = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "b"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1024])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.full(1024, bias, np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tensorwright.compile(model, threads=1, progress=None, target="host").export(path)
    return np.asarray(np.ones((1, 1024), np.float64) @ weight + bias)


def test_files_of_equal_weights_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a process, and with other processes through files in a folder."""
    x = {"x": np.ones((1, 1024), np.float32)}
    expected = [_large(tmp_path / f"{bias}.twm", bias) for bias in (1, 2)]
    for folder in (None, tmp_path / "shared"):
        if folder is not None:
            monkeypatch.setenv("TENSORWRIGHT_SHARED_PARAMETERS", str(folder))
        before = _private_bytes()
        modules = [CModule(tmp_path / f"{bias}.twm") for bias in (1, 2) for _ in range(4)]
        grown = _private_bytes() - before
        # Eight copies of the weights are 32 MB; one is 4, and none is private where it is a file.
        assert grown < (12 << 20 if folder is None else 8 << 20)
        for turn, module in enumerate(modules):
            np.testing.assert_allclose(module.run(x)[0], expected[turn // 4], rtol=1e-4, atol=1e-3)
        for module in modules[:-1]:
            module.free()
        np.testing.assert_allclose(modules[-1].run(x)[0], expected[1], rtol=1e-4, atol=1e-3)
        modules[-1].free()
    assert [each.stat().st_size for each in (tmp_path / "shared").iterdir()] == [4 << 20]
    (tmp_path / "shared").chmod(0o755)
    with pytest.raises(CallError, match="can be read or written by others"):
        CModule(tmp_path / "1.twm")


def test_runs_of_many_sizes_do_not_leave_the_memory_of_all(tmp_path: Path) -> None:
    if not POOL.allocated():
        pytest.skip("the C library does not tell what is allocated")
    squares().export(tmp_path / "squares.twm")
    module, x = CModule(tmp_path / "squares.twm"), np.ones((20, MEGABYTE // 4), np.float32)
    before, most = POOL.allocated(), 0
    for rows in range(1, 21):
        assert np.all(module.run({"x": x[:rows]})[0] == MEGABYTE // 4)
        most = max(most, POOL.allocated() - before)
    module.free()
    assert most < 140 * MEGABYTE  # 1 + 2 + ... + 20 are 210


def _private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))
