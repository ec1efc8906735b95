"""Invalid arguments of `compile`: each has an error that says what to give."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper

import compiler
from compiler.errors import InputError, OptionError, StorageError, TensorwrightError, UnknownTargetError


def relu() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 8]) for name in "xy")
    return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shapes": [(1, 8)]}, OptionError, "dict by input name"),
        ({"constants": [1.0]}, OptionError, "dict by input name"),
        ({"shapes": {"x": 8}}, InputError, "8 is not a shape of input 'x'"),
        ({"shapes": {"x": "1,8"}}, InputError, "'1,8' is not a shape of input 'x'"),
        ({"shapes": {"x": ("4", 8)}}, InputError, "'4' is not a size of input 'x'"),
        ({"target": None}, OptionError, "None is not a target"),
        ({"target": "raspbery-pi-4"}, UnknownTargetError, "did you mean 'raspberry-pi-4'"),
        ({"threads": 0}, OptionError, "from 1 to 4096"),
        ({"threads": "2"}, OptionError, "from 1 to 4096"),
        ({"threads": 10**6}, OptionError, "from 1 to 4096"),
        ({"precision": "fp16"}, OptionError, "float16"),
        ({"records": Path("no/such/folder")}, StorageError, "no tuning records at no/such/folder"),
    ],
    ids=str,
)
def test_one_error_that_says_what_to_give(
    options: dict[str, Any], error: type[TensorwrightError], message: str
) -> None:
    with pytest.raises(error, match=message):
        compiler.compile(relu(), **options)


@pytest.mark.parametrize("options", [{"example_inputs": (1,)}, {"dynamic_shapes": {}}], ids=str)
def test_options_of_torch_modules_on_a_file(options: dict[str, Any], tmp_path: Path) -> None:
    onnx.save(relu(), tmp_path / "relu.onnx")
    with pytest.raises(OptionError, match=r"for torch\.nn\.Module"):
        compiler.compile(tmp_path / "relu.onnx", **options)


def test_a_path_is_no_model_of_the_backend_interface() -> None:
    with pytest.raises(OptionError, match=r"onnx\.load"):
        compiler.onnx_backend.prepare("model.onnx")  # type: ignore[arg-type]


def test_a_full_disk_is_noticed_before_the_engine_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=100, f_frsize=1024))
    with pytest.raises(StorageError, match=r"0\.1 MiB free(?s:.*)TMPDIR"):
        compiler.compile(relu())
