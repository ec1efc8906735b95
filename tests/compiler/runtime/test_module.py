"""A module agrees with numpy, accepts every way of passing tensors, and refuses wrong inputs."""

from __future__ import annotations

import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from compiler.artifact import generate_keys, sign
from compiler.errors import ArtifactError, InputError, OptionError, SignatureError, VerificationError
from compiler.runtime import Module, load
from tests.compiler.runtime.building import (
    build_artifact,
    dense_artifact,
    elementwise_artifact,
    pair_artifact,
)

from tvm import relax  # isort: skip

RANDOM = np.random.default_rng(1)


@pytest.fixture(scope="module")
def dense() -> Module:
    return Module(dense_artifact())


@pytest.fixture(scope="module")
def pair() -> Module:
    return Module(pair_artifact())


def _dense(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    weight, bias = dense_artifact().parameters.values()
    return x.astype(np.float64) @ weight + bias


@pytest.mark.parametrize("rows", [1, 3, 700, 0])
def test_equals_numpy_at_every_size(dense: Module, rows: int) -> None:
    x = RANDOM.standard_normal((rows, 16), np.float32)
    for inputs in ({"x": x}, [x], (x,)):
        y = dense.run(inputs)["y"]
        assert y.dtype == np.float32
        # 16 products of standard normals: float32 rounding stays below 1e-5.
        np.testing.assert_allclose(y, _dense(x), atol=1e-5)


def test_export_and_load(dense: Module, tmp_path: Path) -> None:
    path = tmp_path / "dense.twm"
    dense.export(path)
    x = RANDOM.standard_normal((5, 16), np.float32)
    expected = dense.run([x])["y"]
    for source in (path, str(path), path.read_bytes()):
        loaded = load(source, threads=1, verify=True)
        np.testing.assert_array_equal(loaded.run([x])["y"], expected)
        assert loaded.inputs == dense.inputs
        assert loaded.outputs == dense.outputs
        assert list(loaded.parameters) == ["weight", "bias"]
    assert str(loaded.inputs[0]) == "x: float32[n, 16]"


def test_signed_modules(dense: Module, tmp_path: Path) -> None:
    keys = generate_keys()
    dense.export(tmp_path / "signed.twm", sign_key=keys.private)
    dense.export(tmp_path / "later.twm")
    with pytest.raises(SignatureError):
        load(tmp_path / "later.twm", trusted_keys=[keys.public])
    sign(tmp_path / "later.twm", keys.private)
    for name in ("signed.twm", "later.twm"):
        load(tmp_path / name, trusted_keys=[keys.public]).verify()


def test_results_belong_to_the_caller(dense: Module) -> None:
    x = RANDOM.standard_normal((4, 16), np.float32)
    first = dense.run([x])["y"]
    kept = first.copy()
    second = dense.run([x + 1])["y"]
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    first[:] = 0
    np.testing.assert_array_equal(dense.run([x])["y"], kept)


@pytest.mark.parametrize("size", [4, 40_000])
@pytest.mark.parametrize("outputs", ["numpy", "dlpack"])
def test_a_model_that_returns_its_input_or_a_parameter_gives_copies(size: int, outputs: Any) -> None:
    table = np.arange(size, dtype=np.float32)
    artifact = build_artifact(
        [("x", (size,), "float32")],
        [("same", (size,), "float32"), ("again", (size,), "float32"), ("table", (size,), "float32")],
        lambda x, table: [x, x, table],
        {"table": table},
    )
    module = Module(artifact)
    x = _aligned(np.ones(size, np.float32))
    for _ in range(2):
        results = {name: np.from_dlpack(value) for name, value in module.run([x], outputs=outputs).items()}
        for one in results:
            assert not np.shares_memory(results[one], x)
            assert not any(np.shares_memory(results[one], results[other]) for other in results if other != one)
        np.testing.assert_array_equal(results["table"], table)
        results["table"][:] = 5
        results["same"][:] = 6
        np.testing.assert_array_equal(results["again"], np.ones(size))
        assert (x == 1).all()
    np.testing.assert_array_equal(module.parameters["table"], table)


def test_results_are_written_where_the_caller_wants_them() -> None:
    artifact = build_artifact(
        [("x", ("n", 4), "float32")],
        [("y", ("n", 4), "float32"), ("same", ("n", 4), "float32")],
        lambda x: [relax.op.add(x, x), x],
    )
    module = Module(artifact)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    y, strided = np.zeros((3, 4), np.float32), np.zeros((3, 8), np.float32)[:, ::2]
    results = module.run([x], out={"y": y})
    assert results["y"] is y
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_array_equal(results["same"], x)
    assert module.run([2 * x], out=[strided, x])["y"] is strided  # an output may be an input's memory
    np.testing.assert_array_equal(strided, 4 * y / 2)
    np.testing.assert_array_equal(x, y)
    fixed = y.copy()
    fixed.flags.writeable = False
    wrong: list[tuple[Any, str]] = [
        ({"z": y}, "no output is named 'z'"),
        ([y], "one array per output"),
        (y, "one array per output"),
        ({"y": fixed}, "a read-only array"),
        ({"y": y.tolist()}, "a list"),
        ({"y": y.astype(np.float64)}, "has element type float64; the module gives y: float32"),
        ({"y": y[0]}, "has shape [4]; the module gives y: float32"),
        ({"y": y, "same": y[:2]}, "has shape [2, 4], and the result has [3, 4]"),
    ]
    before = y.copy()
    for out, message in wrong:
        with pytest.raises(InputError, match=re.escape(message)):
            module.run([x + 1], out=out)
    np.testing.assert_array_equal(y, before)
    with pytest.raises(OptionError, match="out= takes numpy arrays"):
        module.run([x], outputs="dlpack", out={"y": y})


def test_parameters_can_not_be_changed(dense: Module) -> None:
    with pytest.raises(ValueError, match="read-only"):
        dense.parameters["weight"][0] = 0


def _aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("rows", [3, 5000])
@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x,
        _aligned,
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.ascontiguousarray(x[::-1])[::-1],
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
        lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: x.view(type("Sub", (np.ndarray,), {})),
    ],
    ids=["plain", "aligned", "fortran", "strided", "negative", "misaligned", "read-only", "broadcast", "subclass"],
)
def test_any_arrangement_in_memory(dense: Module, arrange: Any, rows: int) -> None:
    x = arrange(RANDOM.standard_normal((rows, 16), np.float32))
    np.testing.assert_allclose(dense.run({"x": x})["y"], _dense(np.asarray(x)), atol=1e-5)


@pytest.mark.parametrize("rows", [3, 5000])
def test_inputs_are_let_go_after_a_run(dense: Module, rows: int) -> None:
    x = _aligned(RANDOM.standard_normal((rows, 16), np.float32))
    before = sys.getrefcount(x)
    dense.run([x])
    with pytest.raises(InputError):
        dense.run([x[:, :8]])
    assert sys.getrefcount(x) == before


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"left": 1}, "missing input.*'right'"),
        ({}, "missing input.*'left', 'right'"),
        ({"left": 1, "rigth": 2}, "'rigth' .did you mean 'right'"),
        ({"left": 1, "right": 2, "extra": 3}, "no input is named 'extra'"),
        ([], "expected 2 inputs, got 0"),
        (np.zeros((2, 2, 4), np.float32), "must be a dict by name or a sequence"),
        ("ab", "must be a dict by name or a sequence"),
        (None, "must be a dict by name or a sequence"),
    ],
)
def test_wrong_names_and_containers(pair: Module, inputs: Any, message: str) -> None:
    pair.run([GOOD, GOOD])  # the next run looks first whether its inputs are like these
    with pytest.raises(InputError, match=message):
        pair.run(inputs)


GOOD = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (GOOD[0], "'right' has rank 1"),
        (GOOD[:, :3], r"'right' has shape \[2, 3\]: dimension 1 is 3 and must be 4"),
        (np.ones((3, 4), np.float32), r"dimension 0 \(n\) is 3, but input 'left' has n = 2"),
        (GOOD.astype(np.float64), "'right' has element type float64.*\n.*astype.np.float32"),
        (GOOD.astype(">f4"), "'right' has element type >f4"),
        (GOOD.astype(int), "element type int64"),
        (GOOD.astype(object), "array of Python objects"),
        (GOOD.astype(str), "element type <U32"),
        (GOOD.astype([("a", np.float32)]), "element type"),
        (np.ma.masked_array(GOOD), "masked array"),
        (GOOD.tolist(), "is a list, not an array"),
        (None, "is None, not an array"),
        (1.5, "is a float, not an array"),
        (np.float32(1.5), "has rank 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_wrong_values(pair: Module, value: Any, message: str) -> None:
    for inputs in ({"left": GOOD, "right": value}, [GOOD, value]):
        with pytest.raises(InputError, match=message):
            pair.run(inputs)
    np.testing.assert_array_equal(pair.run([GOOD, GOOD])["sum"], GOOD * 2)


NUMBERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", NUMBERS + ["bfloat16"])
@pytest.mark.parametrize("rows", [2, 9000])
def test_element_types(dtype: str, rows: int) -> None:
    numpy_type = np.dtype(getattr(ml_dtypes, dtype, dtype))
    module = Module(elementwise_artifact(dtype))
    x = RANDOM.integers(0, 60, (rows, 3)).astype(numpy_type)
    for value in (x, _aligned(x)):
        y = module.run([value])["y"]
        assert y.dtype == numpy_type
        np.testing.assert_array_equal(y, x + x)


def test_bool() -> None:
    x = np.array([[True, False, True]])
    y = Module(elementwise_artifact("bool", "logical_xor")).run([x])["y"]
    assert y.dtype == np.bool_
    assert not y.any()


@pytest.mark.parametrize("dtype", ["int4", "uint4", "float8_e4m3fn", "float8_e5m2"])
def test_element_types_that_can_be_inputs_and_parameters(dtype: str) -> None:
    numpy_type = np.dtype(getattr(ml_dtypes, dtype))
    # Not 0, which TVM's float8_e4m3fn turns into 2**-7.
    x = RANDOM.integers(1, 7, (3, 5)).astype(numpy_type)
    artifact = build_artifact(
        [("x", (3, 5), dtype)],
        [("x32", (3, 5), "float32"), ("w32", (3, 5), "float32")],
        lambda x, w: [relax.op.astype(x, "float32"), relax.op.astype(w, "float32")],
        {"w": x[::-1].copy()},
    )
    outputs = Module(artifact).run([x])
    np.testing.assert_array_equal(outputs["x32"], x.astype(np.float32))
    np.testing.assert_array_equal(outputs["w32"], x[::-1].astype(np.float32))


def test_scalars_and_empty_tensors() -> None:
    scalar = Module(elementwise_artifact("float32", shape=()))
    for value in (np.array(1.5, np.float32), np.float32(1.5)):
        y = scalar.run({"x": value})["y"]
        assert y.shape == ()
        assert y == 3
    assert Module(elementwise_artifact("float32")).run([np.zeros((0, 3), np.float32)])["y"].shape == (0, 3)


def test_a_model_without_inputs() -> None:
    artifact = build_artifact(
        [], [("y", (3,), "float32")], lambda w: [relax.op.add(w, w)], {"w": np.arange(3, dtype=np.float32)}
    )
    module = Module(artifact)
    empty: list[Any] = [{}, [], ()]
    for inputs in empty:
        np.testing.assert_array_equal(module.run(inputs)["y"], [0, 2, 4])


def test_what_the_manifest_can_not_express_is_an_input_error() -> None:
    artifact = build_artifact(
        [("x", ("n",), "float32"), ("y", ("2*n",), "float32")],
        [("z", ("2*n",), "float32")],
        lambda x, y: [relax.op.add(relax.op.concat([x, x]), y)],
    )
    module = Module(artifact)
    x = np.ones(2, np.float32)
    assert module.run([x, np.ones(4, np.float32)])["z"].tolist() == [2] * 4
    with pytest.raises(InputError, match="do not fit the model"):
        module.run([x, np.ones(5, np.float32)])


def test_errors_of_the_engine_do_not_break_the_module() -> None:
    artifact = build_artifact(
        [("x", ("n", 1), "int8"), ("y", (1, "m"), "int8")],
        [("z", ("n", "m"), "int8")],
        lambda x, y: [relax.op.add(x, y)],
    )
    module = Module(artifact)
    for _ in range(3):
        with pytest.raises(InputError, match="not enough memory"):  # 2**47 bytes: no process can have them
            module.run([np.zeros((2**23, 1), np.int8), np.zeros((1, 2**24), np.int8)])
        assert module.run([np.ones((2, 1), np.int8), np.ones((1, 3), np.int8)])["z"].tolist() == [[2] * 3] * 2


def test_verify(dense: Module, tmp_path: Path) -> None:
    assert dense.verify()["y"] < 1e-5
    artifact = dense_artifact()
    wrong = artifact.with_reference(artifact.reference_inputs, {"y": artifact.reference_outputs["y"] + 0.1})
    with pytest.raises(VerificationError, match=r"'y' differs .* in 24 of 24 elements, by up to 0.1"):
        Module(wrong).verify()
    Module(wrong).export(tmp_path / "wrong.twm")
    load(tmp_path / "wrong.twm")
    with pytest.raises(VerificationError):
        load(tmp_path / "wrong.twm", verify=True)
    with pytest.raises(VerificationError, match="no reference"):
        Module(pair_artifact()).verify()


def test_it_can_not_be_pickled(dense: Module) -> None:
    with pytest.raises(OptionError, match="cannot be pickled"):
        pickle.dumps(dense)


def test_options(dense: Module) -> None:
    for threads in (0, -1, 1.5, True, "2", 10**6):
        with pytest.raises(OptionError):
            Module(dense_artifact(), threads=threads)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="outputs"):
        dense.run([np.ones((1, 16), np.float32)], outputs="torch")  # type: ignore[arg-type]


@pytest.mark.parametrize("library", [b"", b"text", b"\x7fELF", b"\x7fELF" + bytes(500)])
def test_machine_code_that_is_none(library: bytes) -> None:
    with pytest.raises(ArtifactError):
        Module(replace(dense_artifact(), library=library))


def test_machine_code_cut_off() -> None:
    library = bytes(dense_artifact().library)
    for part in (0.1, 0.5, 0.9, 0.999):
        with pytest.raises(ArtifactError):
            Module(replace(dense_artifact(), library=library[: int(len(library) * part)]))
