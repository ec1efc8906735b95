"""The wheel, built and installed into a clean environment, compiles and runs a model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMPILE = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper
import tensorwright

weight = np.arange(12, dtype=np.float32).reshape(4, 3)
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    [numpy_helper.from_array(weight, "w")],
)
module = tensorwright.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
module.export("model.twm")
x = np.ones((2, 4), np.float32)
np.testing.assert_allclose(tensorwright.load("model.twm").run({"x": x})["y"], x @ weight)
print(tensorwright.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"tensorwright", "compiler", "schedules", "targets", "tuning_logs"}
    assert "compiler/py.typed" in names
    assert "compiler/runtime/libtensorwright_threads.so" in names
    assert re.fullmatch(r"tensorwright-.*-py3-none-linux_\w+\.whl", wheel.name)
    assert any(name.endswith(".json") and name.startswith("targets/") for name in names)


def test_wheel_holds_every_file_that_the_packages_read(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "tensorwright", "compiler", "schedules", "targets", "tuning_logs"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    # Only `benchmarks.tuner` reads what the cost model was trained on.
    wanted = {name for name in tracked.stdout.splitlines() if not name.startswith("tuning_logs/training/")}
    assert "compiler/device/cpp/example.c" in wanted
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_wheel_compiles_a_model_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=600)
    python = tmp_path / "venv" / "bin" / "python"
    # A PYTHONPATH to a checkout would come before what was installed, and pip would find the package there already.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    run = subprocess.run(
        [str(python), "-c", COMPILE], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert str(tmp_path / "venv") in run.stdout
    help_text = subprocess.run(
        [str(python.parent / "tensorwright"), "--help"], capture_output=True, text=True, timeout=600
    )
    assert help_text.returncode == 0, help_text.stderr
