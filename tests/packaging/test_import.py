"""Modules that `import tensorwright` loads, and errors where another package shadows it or the system is another."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tensorwright
from compiler._shadowing import check_platform

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with `paths` before everything else on sys.path."""
    prefix = "".join(f"import sys; sys.path.insert(0, {str(path)!r})\n" for path in reversed(paths))
    return subprocess.run([sys.executable, "-c", prefix + code], capture_output=True, text=True, cwd=ROOT, timeout=600)


def test_import_loads_neither_torch_nor_tvm() -> None:
    code = (
        "import compiler, tensorwright\n"
        "import sys\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'tvm' not in sys.modules, 'TVM was imported'\n"
        "assert tensorwright.errors is compiler.errors\n"
        "assert tensorwright.__version__ == compiler.__version__\n"
        "assert dir(tensorwright) == dir(compiler)\n"
        "tensorwright.compile\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert tensorwright.compile is compiler.compile\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("imported", "name"),
    [("tensorwright", "compiler"), ("tensorwright", "targets"), ("compiler", "schedules"), ("compiler", "targets.py")],
)
def test_package_in_the_way_is_named(tmp_path: Path, imported: str, name: str) -> None:
    path = tmp_path / name
    if path.suffix:
        path.write_text("x = 1\n")
    else:
        path.mkdir()
        (path / "__init__.py").write_text("x = 1\n")
    done = run_python(f"import {imported}", tmp_path)
    assert done.returncode != 0
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"ImportError: Tensorwright's package {path.stem!r} (at {ROOT / path.stem}) is shadowed by")
    assert f"shadowed by {path}. Rename {name!r} there, or take {tmp_path} off sys.path" in error


def test_module_without_a_specification_is_named() -> None:
    done = run_python(
        "import sys, types; sys.modules['schedules'] = types.ModuleType('schedules'); import tensorwright"
    )
    assert "ImportError: Tensorwright's package 'schedules'" in done.stderr, done.stderr


def test_folders_without_code_are_no_packages(tmp_path: Path) -> None:
    for name in ("compiler", "targets", "schedules"):
        (tmp_path / name).mkdir()
    done = run_python("import tensorwright; tensorwright.errors", tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_names_the_package_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tensorwright", "targets"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    assert f"is shadowed by {tmp_path / 'compiler'}." in done.stderr


@pytest.mark.parametrize(("platform", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd14", "freebsd14")])
def test_other_systems_are_named(platform: str, name: str) -> None:
    check_platform("linux")
    with pytest.raises(ImportError, match=f"runs on Linux only, and this is {name}"):
        check_platform(platform)


def test_missing_name_is_an_attribute_error() -> None:
    done = run_python("import tensorwright; tensorwright.compiel")
    assert "AttributeError: module 'tensorwright' has no attribute 'compiel'" in done.stderr


def test_every_public_name_loads() -> None:
    pytest.importorskip("torch")
    assert [name for name in tensorwright.__all__ if not hasattr(tensorwright, name)] == []


@pytest.mark.parametrize("name", ["errors", "generation", "serving"])
def test_modules_of_the_public_api_can_be_imported_by_name(name: str) -> None:
    assert importlib.import_module(f"tensorwright.{name}") is getattr(tensorwright, name)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        importlib.import_module("tensorwright.no_such_module")
