"""The output of `--version`."""

from __future__ import annotations

import importlib.metadata
import platform

import compiler


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def version_text() -> str:
    """One line: Tensorwright's version and the parts that decide about modules, without importing any."""
    parts = [f"{name} {_installed(name)}" for name in ("apache-tvm", "apache-tvm-ffi", "onnx")]
    parts.append(f"Python {platform.python_version()}")
    parts.append(f"{platform.system()} {platform.machine()}")
    return f"tensorwright {compiler.__version__} ({', '.join(parts)})"
