"""Kernels built in several processes, linked into one library."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import relax, te, topi

import compiler
import targets
from compiler.codegen import build
from compiler.codegen.build import _build_in_processes, build_library, build_objects, worth_parts
from compiler.errors import CompilationError
from schedules.instructions.llvm_options import KERNEL_OPTIONS, LLVM_OPTIONS
from tests.compiler.building import perceptron


@pytest.fixture(autouse=True)
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build in several processes, as outside of the suite (tests/conftest.py)."""
    monkeypatch.setattr(build, "_build_in_processes", _build_in_processes)


def _scaled(size: int) -> Any:
    """y = x * size, sorted by a TVM function that a kernel finds through its library."""
    x = te.placeholder((size,), name="x")
    y = te.compute((size,), lambda i: x[i] * float(size), name="y")
    name = f"scaled{size}"
    function = te.create_prim_func([x, topi.sort(y, axis=0)]).with_attr("global_symbol", name)
    return tvm.ir.GlobalVar(name), function


def test_kernels_built_apart_are_linked_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "processes", lambda: 3)
    target = targets.get("host")
    kernels = [_scaled(size) for size in range(1, 15)]
    objects = build_objects(kernels, None, target.tvm_target(), tmp_path)
    assert len(objects) == 4
    target.linker().link(tmp_path / "library.so", objects)
    library = tvm.runtime.load_module(str(tmp_path / "library.so"))
    for size in range(1, 15):
        x = np.random.default_rng(size).standard_normal(size).astype("float32")
        y = tvm.runtime.tensor(np.zeros(size, "float32"))
        library[f"scaled{size}"](tvm.runtime.tensor(x), y)
        np.testing.assert_array_equal(y.numpy(), np.sort(x * np.float32(size)))


@pytest.mark.parametrize("attribute", KERNEL_OPTIONS)
def test_kernels_with_options_are_an_object_of_their_own(
    attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[list[str], list[str]]] = []

    def counted(part: Any, target: Any, pipeline: str) -> Any:
        built.append(([var.name_hint for var in part.get_global_vars()], list(target.export()["cl-opt"])))
        return real(part, target, pipeline)

    real = tvm.tirx.build
    monkeypatch.setattr(tvm.tirx, "build", counted)
    monkeypatch.setattr(build, "_kept", build._Kept(0))  # another test built the same kernel
    (plain, kernel), (scalar, other) = _scaled(3), _scaled(4)
    marked = other.with_attr(attribute, tvm.tirx.IntImm("bool", 1))
    objects = build_objects([(scalar, marked), (plain, kernel)], None, targets.get("host").tvm_target(), tmp_path)
    assert len(objects) == 2
    assert built == [
        (["scaled4"], [*LLVM_OPTIONS, KERNEL_OPTIONS[attribute]]),
        (["scaled3"], [*LLVM_OPTIONS]),
    ]


def test_a_module_of_parts_equals_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron(layers=2)
    x = np.random.default_rng(0).standard_normal((4, 64)).astype("float32")
    whole = compiler.compile(model, records=False).run({"x": x})
    monkeypatch.setattr(build, "processes", lambda: 2)
    monkeypatch.setattr(build, "_MIN_KERNELS", 1)
    parts = compiler.compile(model, records=False).run({"x": x})
    np.testing.assert_array_equal(whole["y"], parts["y"])


def test_what_fails_in_a_process_is_an_error_of_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "processes", lambda: 2)
    x = te.placeholder((4,), name="x")
    nowhere = tvm.tirx.Var("nowhere", "float32")
    y = te.compute((4,), lambda i: x[i] + nowhere)
    kernels = dict(_scaled(size) for size in range(1, 15))
    broken = te.create_prim_func([x, y]).with_attr("global_symbol", "broken")
    mod = tvm.IRModule({**kernels, tvm.ir.GlobalVar("broken"): broken})
    with pytest.raises(CompilationError, match="code generation"):
        build_library(mod, targets.get("host"))


@pytest.mark.parametrize("least", [1, 100], ids=["parts", "whole"])
def test_kernels_of_an_earlier_compilation_are_not_generated_again(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is the same; other kernels and other targets get separate objects."""
    generated: list[list[str]] = []

    def counted(part: Any, *arguments: Any) -> Any:
        generated.append([var.name_hint for var in part.get_global_vars()])
        return real(part, *arguments)

    real = tvm.tirx.build
    monkeypatch.setattr(tvm.tirx, "build", counted)
    monkeypatch.setattr(build, "_kept", build._Kept(1 << 20))
    monkeypatch.setattr(build, "processes", lambda: 2)
    monkeypatch.setattr(build, "_MIN_KERNELS", least)
    monkeypatch.setattr(build, "_build_in_processes", build._build_here)

    def library(width: int, target: str = "x86-64-v3") -> bytes:
        generated.clear()
        return bytes(compiler.compile(perceptron(width=width), target, records=False, threads=1).artifact.library)

    first = library(64)
    assert any("matmul" in name for part in generated for name in part)
    assert library(64) == first
    assert not generated
    for other in (library(48), library(64, "x86-64-v4")):
        assert other != first
        assert any("matmul" in name for part in generated for name in part)


def test_a_kernel_is_generated_for_each_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_kept", build._Kept(1 << 20))
    made = []
    for name in ("x86-64-v3", "x86-64-v4", "x86-64-v3"):
        (path,) = build_objects([_scaled(3)], None, targets.get(name).tvm_target(), tmp_path)
        made.append(path.read_bytes())
    assert made[0] == made[2] != made[1]


def test_libraries_of_other_compilers_are_linked_by_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[list[str]] = []

    def counted(mod: tvm.IRModule, *arguments: Any, **options: Any) -> Any:
        built.append([str(name) for name in dict(mod.attrs or {})])
        return real(mod, *arguments, **options)

    real = relax.build
    monkeypatch.setattr(relax, "build", counted)
    mod = tvm.IRModule(dict([_scaled(3)]))
    assert build_library(mod.with_attr("external_mods", []), targets.get("host"))
    assert build_library(mod, targets.get("host"))
    assert built == [["external_mods"]]


def test_objects_that_were_used_longest_ago_make_room() -> None:
    kept = build._Kept(25)
    for key in (b"a", b"b"):
        kept.add(key, bytes(10))
    assert kept.get(b"a") == bytes(10)
    kept.add(b"c", bytes(10))
    assert [kept.get(key) is None for key in (b"a", b"b", b"c")] == [False, True, False]


def test_few_kernels_and_daemons_fork_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "processes", lambda: 2)
    kernels = [object()] * 100
    assert worth_parts(kernels)
    assert not worth_parts(kernels[:3])
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert not worth_parts(kernels)
