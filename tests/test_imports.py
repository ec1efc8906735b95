"""Imports go downwards only: between packages and between files, inside functions as well."""

from __future__ import annotations

import ast
import graphlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import compiler

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom; what stands in one line does not import each other. A package may import what stands below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("compiler.cli",),
    ("compiler.searching", "compiler.splitting"),
    (
        "compiler.onnx_backend",
        "compiler.onnxruntime",
        "compiler.compression",
        "compiler.inspection",
        "compiler.serving",
        "compiler.tuning",
    ),
    ("compiler.driver",),
    ("compiler.device", "compiler.generation", "compiler.profiling"),
    ("compiler.frontends", "compiler.runtime"),
    ("compiler.passes",),
    ("compiler.codegen",),
    ("compiler.records",),
    ("compiler.artifact",),
    ("compiler.reports", "compiler.support"),
    ("compiler.errors",),
    ("targets",),
    ("schedules",),
)
# The public names of `compiler` are loaded on first use: its `__init__` and the entry point of torch.compile import
# nothing at the top, and stand above and below the rest.
FACADES = frozenset({"compiler", "compiler.torch_backend", "compiler._shadowing"})

# Where an import inside a function is wanted, and why.
LAZY = {
    "compiler.cli": "a command loads only what it needs: `--help` loads no TVM",
    "compiler.inspection": "looking at a module or a model loads no compiler",
    "compiler.tuning.measuring": "the workers are processes that load TVM after they have set their limits",
    "compiler.driver.compile": "a module out of the cache is loaded without TVM",
    "compiler.driver.compile_options": "as compile",
    "compiler.driver.module_cache": "as compile",
    "compiler.onnx_backend": "importing the backend loads no compiler",
    "compiler.device.tunnel": "a process that only carries bytes loads no TVM",
    "compiler.frontends.llm.transformers_decoder": "torch is loaded for models that are captured alone",
    "compiler.frontends.llm.transformers_encoder": "torch is loaded for models that are captured alone",
    "compiler.frontends.source": "torch is loaded for PyTorch models alone",
    "compiler.compression.pruning.driver": "torch is loaded for training alone",
    "compiler.searching": "torch is loaded for PyTorch models alone",
    "compiler.profiling.contestant": "a process loads the one runtime that it times",
    "compiler.runtime.device": "a module without an accelerator loads no targets, and looks for no GPU",
    "compiler.runtime.thread_pool": "setup.py compiles the pool where TVM is not installed",
    "compiler.runtime.loading": "a file is checked while what runs it is loaded",
    "compiler.serving.tracing": "a server that gives no profiles loads no profiler",
    "schedules.gpu": "compiling for a processor loads no rules for GPUs",
    "schedules.rule": "declaring a rule loads no TVM",
    "schedules.selection.alternatives": "a choice is described without loading the rules",
    "targets": "listing targets loads no TVM",
}


@dataclass(frozen=True)
class Import:
    """One module that a file imports; `lazy` inside a function, `typing_only` under TYPE_CHECKING."""

    module: str
    lazy: bool
    typing_only: bool


@cache
def _modules() -> dict[str, Path]:
    found = {}
    for top in ("compiler", "schedules", "targets"):
        for path in (ROOT / top).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


@cache
def _parsed(name: str) -> ast.Module:
    return ast.parse(_modules()[name].read_text())


@cache
def _imports(name: str) -> frozenset[Import]:
    return frozenset(each for each in _found(_parsed(name), False, False) if each.module != name)


def _found(node: ast.AST, lazy: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        typing = typing_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and child.module:
            names = [_target(child.module, alias.name) for alias in child.names]
        yield from (Import(each, inside, typing) for each in names if each in _modules())
        yield from _found(child, inside, typing)


def _target(module: str, name: str) -> str:
    """The module that `from module import name` loads: one of that name, or `module`."""
    return f"{module}.{name}" if f"{module}.{name}" in _modules() else module


def _layer(name: str) -> int | None:
    for position, packages in enumerate(LAYERS):
        if any(name == package or name.startswith(f"{package}.") for package in packages):
            return position
    return None


def _package(name: str) -> str:
    is_package = _modules()[name].name == "__init__.py"
    return name if is_package else name.rpartition(".")[0] or name


def test_every_module_stands_in_a_layer() -> None:
    assert [name for name in _modules() if name not in FACADES and _layer(name) is None] == []


def test_packages_import_what_stands_below_them() -> None:
    wrong = []
    for name in _modules():
        for each in _imports(name):
            if name in FACADES or each.module in FACADES or each.typing_only:
                continue
            ours, theirs = _layer(name), _layer(each.module)
            if ours is not None and theirs is not None and ours > theirs:
                wrong.append(f"{name} imports {each.module}")
    assert wrong == []


def test_packages_of_a_layer_do_not_import_each_other() -> None:
    wrong = []
    for name in _modules():
        for each in _imports(name):
            layer = _layer(name)
            if layer is not None and layer == _layer(each.module) and not each.typing_only:
                ours = next(each for each in LAYERS[layer] if name == each or name.startswith(f"{each}."))
                if each.module != ours and not each.module.startswith(f"{ours}."):
                    wrong.append(f"{name} imports {each.module}")
    assert wrong == []


def test_no_cycle_between_files() -> None:
    graph = {
        name: {each.module for each in _imports(name) if not each.typing_only}
        for name in _modules()
        if name not in FACADES
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_no_cycle_between_packages() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for name in _modules():
        for each in _imports(name):
            ours, theirs = _package(name), _package(each.module)
            related = f"{ours}.".startswith(f"{theirs}.") or f"{theirs}.".startswith(f"{ours}.")
            if not related and not each.typing_only and name not in FACADES and each.module not in FACADES:
                graph[ours].add(theirs)
    graphlib.TopologicalSorter(graph).prepare()


def test_imports_inside_functions_have_a_reason() -> None:
    lazy = {name for name in _modules() if name not in FACADES and any(each.lazy for each in _imports(name))}
    without = [name for name in lazy if not any(name == each or name.startswith(f"{each}.") for each in LAZY)]
    assert sorted(without) == []
    unused = [each for each in LAZY if not any(name == each or name.startswith(f"{each}.") for name in lazy)]
    assert unused == [], "these reasons are no longer needed"


def test_no_module_defines_a_name_twice() -> None:
    twice = []
    for name in sorted(_modules()):
        found: Counter[str] = Counter()
        for statement in _parsed(name).body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                overload = any(
                    isinstance(each, ast.Name) and each.id == "overload" for each in statement.decorator_list
                )
                found[statement.name] += not overload
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                names = [each for each in ast.walk(statement) if isinstance(each, ast.Name)]
                found.update(each.id for each in names if isinstance(each.ctx, ast.Store) and each.id.isupper())
        twice += [f"{name}: {each}" for each, count in found.items() if count > 1]
    assert twice == []


_WITHOUT_TORCH = "schedules.ir.load_tvm"


def _first_of_tvm(name: str, seen: set[str]) -> str | None:
    """The first that importing a module loads of TVM: `_WITHOUT_TORCH`, or TVM itself."""
    for each in _ancestors(name):
        if each in seen or each not in _modules():
            continue
        seen.add(each)
        for statement in _parsed(each).body:
            if found := _first_in(statement, seen):
                return found
    return None


def _ancestors(name: str) -> list[str]:
    """The packages that hold a module, the outermost first, and the module."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _first_in(statement: ast.stmt, seen: set[str]) -> str | None:
    if isinstance(statement, ast.With) and "torch_hidden" in ast.unparse(statement.items[0]):
        return _WITHOUT_TORCH
    names: list[str] = []
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom) and statement.module:
        names = [statement.module, *(_target(statement.module, alias.name) for alias in statement.names)]
    for name in names:
        if name == _WITHOUT_TORCH or name.partition(".")[0] in ("tvm", "tvm_ffi"):
            return name
        if found := _first_of_tvm(name, seen):
            return found
    return None


def test_public_names_and_workers_load_tvm_without_torch() -> None:
    """`import tvm` imports torch where it is installed, which takes longer than TVM."""
    entries = {home or f"compiler.{name}" for name, home in compiler._HOME.items()}
    workers = {name for name in _modules() if name.endswith("_worker")}
    found = {name: _first_of_tvm(name, set()) for name in entries | workers}
    assert {name: first for name, first in found.items() if first not in (None, _WITHOUT_TORCH)} == {}
