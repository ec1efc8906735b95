from __future__ import annotations

from tvm.script import tirx as T

from compiler.driver.manifest_entries import parallel_tasks, serial_reason
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


@T.prim_func(private=True)
def long(x: T.Buffer((1 << 20,), "float32"), y: T.Buffer((1 << 20,), "float32")) -> None:  # type: ignore[valid-type]
    for i in range(1 << 20):
        y[i] = x[i]


@T.prim_func(private=True)
def scan(x: T.Buffer((1 << 20,), "float32"), y: T.Buffer((1 << 20,), "float32")) -> None:  # type: ignore[valid-type]
    for i in T.parallel(1):
        for j in T.serial(1 << 20, annotations={"tensorwright.serial": "a scan along one axis"}):
            y[j] = x[j] + y[i]


@T.prim_func(private=True)
def partly(x: T.Buffer((1 << 20,), "float32"), y: T.Buffer((1 << 20,), "float32")) -> None:  # type: ignore[valid-type]
    for i in T.parallel(1 << 20):
        y[i] = x[i]
    for j in T.serial(1 << 20, annotations={"tensorwright.serial": "updates of one element are applied in order"}):
        y[j] = x[j] + y[0]
    for k in T.serial(4, annotations={"tensorwright.serial": "little"}):
        y[k] = x[k]


@T.prim_func(private=True)
def dynamic_scan(x_handle: T.handle, y_handle: T.handle) -> None:
    n = T.int64()
    x = T.match_buffer(x_handle, (n,), "float32")
    y = T.match_buffer(y_handle, (n,), "float32")
    for j in T.serial(n, annotations={"tensorwright.serial": "a scan along one axis"}):
        y[j] = x[j] + y[0]


@T.prim_func(private=True)
def in_tasks(x: T.Buffer((64, 1 << 14), "float32"), y: T.Buffer((64, 1 << 14), "float32")) -> None:  # type: ignore[valid-type]
    for i in T.parallel(64):
        for j in T.serial(1 << 14, annotations={"tensorwright.serial": "a scan along one axis"}):
            y[i, j] = x[i, j] + y[i, 0]


@T.prim_func(private=True)
def around_tasks(x: T.Buffer((64, 1 << 14), "float32"), y: T.Buffer((64, 1 << 14), "float32")) -> None:  # type: ignore[valid-type]
    for i in T.serial(64, annotations={"tensorwright.serial": "each step needs the one before it"}):
        for j in T.parallel(1 << 14):
            y[i, j] = x[i, j]


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


def test_why_one_thread_computes_a_kernel() -> None:
    assert serial_reason(static, 2) is None
    assert serial_reason(serial, 2) == "too little work"
    assert serial_reason(serial, 1) == "compiled for one core"
    assert serial_reason(long, 2) == "no loop that threads can share"
    assert serial_reason(scan, 2) == "a scan along one axis"


def test_a_serial_part_of_a_kernel_is_named() -> None:
    assert serial_reason(partly, 2) == "updates of one element are applied in order"
    assert serial_reason(in_tasks, 2) is None
    assert serial_reason(around_tasks, 2) is None
    assert serial_reason(dynamic, 2) is None
    assert serial_reason(dynamic_scan, 2) == "a scan along one axis"
