from __future__ import annotations

from tvm.script import tirx as T

from compiler.driver.manifest_entries import parallel_tasks
from compiler.support.balance import task_counts


@T.prim_func(private=True)
def static(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")) -> None:  # type: ignore[valid-type]
    for i in T.parallel(16):
        for j in range(4):
            y[i * 4 + j] = x[i * 4 + j]
    for k in T.parallel(64):
        y[k] = y[k] + T.float32(1)
    for m in T.parallel(16):
        y[m] = x[m]


@T.prim_func(private=True)
def serial(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")) -> None:  # type: ignore[valid-type]
    for i in range(64):
        y[i] = x[i]


@T.prim_func(private=True)
def dynamic(x_handle: T.handle, y_handle: T.handle, rows: T.int64) -> None:
    n = T.int64()
    x = T.match_buffer(x_handle, (n, 8), "float32")
    y = T.match_buffer(y_handle, (n, 8), "float32")
    for i in T.parallel((n + T.int64(3)) // T.int64(4)):
        y[i, 0] = x[i, 0]
    for j in T.parallel(T.min(rows, n)):
        y[j, 1] = x[j, 1]


@T.prim_func(private=True)
def data_dependent(x: T.Buffer((64,), "int32"), y: T.Buffer((64,), "int32")) -> None:  # type: ignore[valid-type]
    for i in T.parallel(x[0]):
        y[i] = x[i]


def test_loops_of_static_sizes() -> None:
    assert parallel_tasks(static) == (("16", "64"), {})
    assert parallel_tasks(serial) == ((), {})


def test_loops_of_dynamic_sizes() -> None:
    tasks, places = parallel_tasks(dynamic)
    assert places == {"n": (0, 0), "rows": (2, -1)}
    assert task_counts(tasks, {"n": 10, "rows": 4}) == (3, 4)
    assert task_counts(tasks, {"n": 10}) is None


def test_what_only_the_code_knows() -> None:
    assert parallel_tasks(data_dependent) == (("?",), {})
    assert task_counts(("?",), {}) is None
