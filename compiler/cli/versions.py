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
    """One line per component, without importing any."""
    lines = [
        ("tensorwright", compiler.__version__),
        ("tvm", _installed("apache-tvm")),
        ("tvm-ffi", _installed("apache-tvm-ffi")),
        ("onnx", _installed("onnx")),
        ("python", platform.python_version()),
        ("machine", f"{platform.machine()}, {platform.system()} {platform.release()}"),
    ]
    return "\n".join(f"{name:<14}{version}" for name, version in lines)
