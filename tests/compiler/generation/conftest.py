"""Small shared language models: one for single sequences, and one for several."""

from __future__ import annotations

from pathlib import Path

import pytest

import compiler
from compiler.generation import LanguageModel
from tests.compiler.generation.models import write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def separate(folder: Path) -> LanguageModel:
    return LanguageModel(compiler.compile(folder, threads=1))


@pytest.fixture(scope="session")
def joined(folder: Path) -> LanguageModel:
    return LanguageModel(compiler.compile(folder, threads=1, sequences=True))
