"""The runtime needs no compiler, TVM package or torch, and can share a process with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.artifact import write_artifact
from compiler.runtime import library
from compiler.runtime.module import Module
from tests.compiler.runtime.building import dense_artifact

RUN = """
import numpy as np, sys
from compiler.runtime import load
module = load(sys.argv[1])
assert module.verify()["y"] < 1e-5
"""
LOADED = """
def loaded(text):
    return any(text in line for line in open("/proc/self/maps"))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isolation") / "dense.twm"
    write_artifact(dense_artifact(), path)
    return path


def _python(code: str, path: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "TVM_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_nothing_of_the_compiler_is_loaded(path: Path) -> None:
    check = """
assert loaded("libtvm_runtime.so")
assert not loaded("libtvm_compiler.so")
assert not loaded("libtorch")
bad = {"tvm", "torch", "onnx", "targets.target", "schedules.ir.load_tvm", "cryptography"} & set(sys.modules)
assert not bad, bad
"""
    _python(RUN + LOADED + check, path)


def test_importing_it_is_cheap(path: Path) -> None:
    code = RUN + "assert 'pydantic' not in sys.modules; print(len(sys.modules))"
    # Of Python, numpy and TVM's bindings: 340. `import tvm` makes it 1,100 and more.
    assert int(_python(code, path)) < 450
    assert _python("import sys, compiler.runtime; print('numpy' in sys.modules)", path) == "False\n"


@pytest.mark.parametrize(
    "code",
    [
        "import schedules.ir.load_tvm, tvm\n" + RUN,
        RUN + "import schedules.ir.load_tvm, tvm; tvm.target.Target({'kind': 'llvm'})\nmodule.verify()",
        "import torch\n" + RUN + "torch.ones(3).sum()",
        RUN + "import torch; torch.ones(3).sum()\nmodule.verify()",
    ],
    ids=["tvm before", "tvm after", "torch before", "torch after"],
)
def test_it_lives_with_others_in_either_order(code: str, path: Path) -> None:
    if "torch" in code:
        pytest.importorskip("torch")
    _python(code, path)


def test_no_file_is_left_and_no_descriptor(path: Path, tmp_path: Path) -> None:
    code = (
        RUN
        + """
import os
before = len(os.listdir("/proc/self/fd"))
modules = [load(open(sys.argv[1], "rb").read()) for _ in range(20)]
assert len(os.listdir("/proc/self/fd")) == before
for module in modules:
    module.verify()
for _ in range(20):
    module = load(sys.argv[1])  # a mapped file takes one while in use
assert len(os.listdir("/proc/self/fd")) == before
"""
    )
    _python(code, path, TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_exceptions_read_no_file_that_got_the_number_of_a_library(path: Path) -> None:
    """TVM opens all loaded libraries by their paths when an exception is thrown; an empty file there ended the
    process."""
    code = (
        RUN
        + """
import tempfile, tvm_ffi
empty = [tempfile.TemporaryFile() for _ in range(20)]
try:
    tvm_ffi.get_global_func("ffi.Module.load_from_file.so")("/missing", "so")
except RuntimeError:
    module.verify()
else:
    raise AssertionError
"""
    )
    _python(code, path)


def test_many_libraries_are_kept_apart() -> None:
    """The dynamic loader must not mistake a reused descriptor for the library that it opened there before."""
    import numpy as np

    from tests.compiler.runtime.building import elementwise_artifact

    x = np.full((1, 3), 5, np.float32)
    for _ in range(5):
        for operation, expected in (("add", 10), ("subtract", 0), ("multiply", 25)):
            y = Module(elementwise_artifact("float32", operation)).run([x])["y"]
            assert (y == expected).all()


def test_without_memory_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Module(dense_artifact()).verify()
    assert list(tmp_path.iterdir()) == []


def test_where_memory_can_not_be_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(load: object, data: bytes) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(library, "_load_from_memory", refuse)
    Module(dense_artifact()).verify()


def test_a_missing_runtime_is_explained(path: Path) -> None:
    code = """
import sys
from compiler.errors import MissingDependencyError
from compiler.runtime import load
try:
    load(sys.argv[1])
except MissingDependencyError as error:
    print(error)
"""
    assert "/missing.so" in _python(code, path, TENSORWRIGHT_RUNTIME_LIBRARY="/missing.so")


@pytest.mark.parametrize("command", ["run", "profile", "inspect"])
def test_commands_for_modules_load_no_compiler(command: str, path: Path) -> None:
    code = f"""
import sys
from compiler.cli import main
assert main([{command!r}, sys.argv[1]]) == 0
bad = {{"tvm", "torch", "onnx"}} & set(sys.modules)
assert not bad, bad
"""
    _python(code, path)
