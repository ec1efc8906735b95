from __future__ import annotations

import os
from pathlib import Path

import pytest

import compiler
from tests.compiler.building import perceptron


@pytest.fixture(scope="session")
def module() -> compiler.Module:
    """Three matrix products of 256x256 with a batch of 4, on one thread."""
    return compiler.compile(perceptron(width=256), threads=1)


@pytest.fixture(scope="session")
def open_module() -> compiler.Module:
    """The same products with a dynamic batch."""
    return compiler.compile(perceptron(batch="batch"), threads=1)


@pytest.fixture(scope="session")
def module_path(module: compiler.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("modules") / "perceptron.twm"
    module.export(path)
    return path


def chromium() -> str | None:
    """A headless browser, where one is installed."""
    from shutil import which

    return next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), os.environ.get("CHROMIUM"))
