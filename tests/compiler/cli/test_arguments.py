from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from compiler.cli.arguments import parse_arrays, parse_passes, parse_shapes, parse_sizes, parse_state, split_shapes
from compiler.errors import InputError, OptionError, StorageError, UserError


@dataclass(frozen=True)
class Spec:
    name: str
    dtype: str = "float32"
    shape: tuple[int | str, ...] = ()


def test_shapes() -> None:
    assert parse_sizes(["n=1,8", "x=1x3,2x3"]) == {"n": [1, 8], "x": [(1, 3), (2, 3)]}
    with pytest.raises(OptionError, match="--sizes n: 'all' is neither a size nor a shape"):
        parse_sizes(["n=all"])
    assert parse_shapes(["a=batch,64", "b=3", "c="]) == {"a": ("batch", 64), "b": (3,), "c": ()}
    assert parse_shapes(["a=1x3x224x224", "b=batchx64"]) == {"a": (1, 3, 224, 224), "b": ("batch", 64)}
    assert parse_shapes(["a=max_length", "b=1,max_length"]) == {"a": ("max_length",), "b": (1, "max_length")}
    with pytest.raises(OptionError, match=r"'' is not a size"):
        parse_shapes(["a=1x3xmax"])


def test_states() -> None:
    assert parse_state([]) is None
    assert parse_state(["none"]) == {}
    assert parse_state(["past.*=present.*", "h=hn"]) == {"past.*": "present.*", "h": "hn"}
    assert parse_state(["cache", "length"]) == ["cache", "length"]
    for mixed in (["h=hn", "cache"], ["none", "cache"]):
        with pytest.raises(OptionError, match="mix several forms"):
            parse_state(mixed)


@pytest.mark.parametrize("text", ["a", "=3", "a=3,", "a=-1", "a=1.5", "a=2x", "a=b c"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(OptionError, match="--shape"):
        parse_shapes([text])


def test_nothing_is_given_twice() -> None:
    with pytest.raises(OptionError, match="given twice"):
        parse_shapes(["a=1", "a=2"])


def test_sizes_from_inputs_and_from_dimensions() -> None:
    specs = [Spec("x", shape=("batch", 64)), Spec("y", shape=("batch", "length"))]
    assert split_shapes({"x": (3, 64), "length": (5,)}, specs) == {"batch": 3, "length": 5}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1,)}, "no input"),
        ({"x": (1,)}, "1 sizes for an input"),
        ({"x": (1, 65)}, "was compiled for"),
        ({"batch": ("n",)}, "no input"),
    ],
)
def test_sizes_that_do_not_fit(shapes: dict[str, tuple[int | str, ...]], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        split_shapes(shapes, [Spec("x", shape=("batch", 64))])


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("16000", "int64", np.array(16000, np.int64)),
        ("3", "float32", np.array(3, np.float32)),
        ("0.5", "float16", np.array(0.5, np.float16)),
        ("true", "bool", np.array(True)),
        ("False", "bool", np.array(False)),
        ("[1, 2, 3]", "int32", np.array([1, 2, 3], np.int32)),
        ("[[1.5, -2]]", "float32", np.array([[1.5, -2]], np.float32)),
        ("2.0", "int64", np.array(2, np.int64)),
    ],
)
def test_literals_take_the_inputs_type(text: str, dtype: str, expected: np.ndarray) -> None:
    array = parse_arrays([f"a={text}"], "--input", {"a": Spec("a", dtype)})["a"]
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_literals_of_unknown_inputs_are_int64_or_float32() -> None:
    arrays = parse_arrays(["a=1", "b=1.5"], "--constant", {})
    assert (arrays["a"].dtype, arrays["b"].dtype) == (np.int64, np.float32)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("300", "int8"),
        ("-1", "uint8"),
        ("1.5", "int64"),
        ("words", "float32"),
        ("[1, [2]]", "float32"),
        ("'x'", "float32"),
        ("{1: 2}", "float32"),
        ("1+", "float32"),
        ("1j", "float32"),
    ],
)
def test_values_that_do_not_fit(text: str, dtype: str) -> None:
    with pytest.raises(UserError, match="--input a"):
        parse_arrays([f"a={text}"], "--input", {"a": Spec("a", dtype)})


def test_files(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "all.npz", a=array, b=array + 1)
    specs = {"a": Spec("a"), "b": Spec("b")}
    np.testing.assert_array_equal(parse_arrays([f"a={tmp_path}/a.npy"], "--input", specs)["a"], array)
    np.testing.assert_array_equal(parse_arrays([f"b={tmp_path}/all.npz"], "--input", specs)["b"], array + 1)
    assert sorted(parse_arrays([f"{tmp_path}/all.npz"], "--input", specs)) == ["a", "b"]
    with pytest.raises(InputError, match="has no array of that name"):
        parse_arrays([f"c={tmp_path}/all.npz"], "--input", specs)


def test_bad_files(tmp_path: Path) -> None:
    specs = {"a": Spec("a")}
    with pytest.raises(StorageError, match="cannot be read"):
        parse_arrays([f"a={tmp_path}/missing.npy"], "--input", specs)
    with pytest.raises(StorageError, match="cannot be read"):
        parse_arrays([f"{tmp_path}/missing.npz"], "--input", specs)
    for name, content in (("junk.npy", b"junk"), ("junk.npz", b"junk"), ("empty.npy", b""), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="plain numbers"):
            parse_arrays([f"a={tmp_path}/{name}"], "--input", specs)
    # A pickle could run code when it is opened.
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="plain numbers"):
        parse_arrays([f"a={tmp_path}/objects.npy"], "--input", specs)


def test_random_stays_that_word_and_must_be_an_input() -> None:
    assert parse_arrays(["a=random"], "--input", {"a": Spec("a")}) == {"a": "random"}
    with pytest.raises(InputError, match="no input has that name"):
        parse_arrays(["b=random"], "--input", {"a": Spec("a")})


def test_passes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def simplify(mod):\n    return mod\n")
    passes = parse_passes(
        [f"after:fold-constants={file}:simplify", "instead-of:fold-pad=none", "before:normalize=fuse"]
    )
    assert passes["after:fold-constants"].__name__ == "simplify"
    assert passes["instead-of:fold-pad"] is None
    assert passes["before:normalize"] == "fuse"


@pytest.mark.parametrize("place", ["no_such_module:f", "os:no_such_function", "missing.py:f"])
def test_bad_passes(place: str) -> None:
    with pytest.raises(UserError, match="--pass"):
        parse_passes([f"after:x={place}"])
