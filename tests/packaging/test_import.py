"""What `import compiler` costs and loads, and what it says when a module of the user is in the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with `paths` before everything else on sys.path."""
    prefix = "".join(f"import sys; sys.path.insert(0, {str(path)!r})\n" for path in reversed(paths))
    return subprocess.run([sys.executable, "-c", prefix + code], capture_output=True, text=True, cwd=ROOT, timeout=600)


def test_import_loads_neither_torch_nor_tvm() -> None:
    code = (
        "import compiler\n"
        "import sys\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'tvm' not in sys.modules, 'TVM was imported'\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_using_compile_loads_no_torch() -> None:
    done = run_python("import compiler; compiler.compile; import sys; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_shadowing_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "targets.py").write_text("x = 1\n")
    done = run_python("import compiler", tmp_path)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert str(tmp_path / "targets.py") in done.stderr


def test_missing_name_is_an_attribute_error() -> None:
    done = run_python("import compiler; compiler.compiel")
    assert "AttributeError: module 'compiler' has no attribute 'compiel'" in done.stderr


def test_every_public_name_loads() -> None:
    pytest.importorskip("torch")
    done = run_python("import compiler\nfor name in compiler.__all__: getattr(compiler, name)")
    assert done.returncode == 0, done.stderr
