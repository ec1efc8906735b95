"""Imports and options shared by the commands for language models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from compiler.cli.options import keywords_of
from compiler.errors import OptionError, storage_errors
from compiler.support.compilation import collecting_rarely


@collecting_rarely  # imported objects never become garbage
def prepare_generation() -> None:
    """Import the modules for text generation quickly, to reduce the time to the first token."""
    # Otherwise numpy's BLAS starts a spinning thread per core, though numpy has no large matmuls here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import compiler.generation  # noqa: F401


def generation_options(given: Any, grammar: Any = None) -> Any:
    """Return the `GenerationOptions` for the options of a command."""
    from compiler.generation import GenerationOptions

    return GenerationOptions(**keywords_of(GenerationOptions, given, stop=tuple(given.stop or ()), grammar=grammar))


def grammar_of(json_schema: Path | None, grammar: Path | None, regex: str | None) -> Any:
    """Return the `Grammar` given by one of the options; None if none is given.

    Raises OptionError if several are given, StorageError if a file cannot be read.
    """
    from compiler.generation import Grammar

    if sum(each is not None for each in (json_schema, grammar, regex)) > 1:
        raise OptionError("give one of --json-schema, --grammar and --regex")
    if json_schema is not None:
        return Grammar.json_schema(_text_of(json_schema))
    if grammar is not None:
        return Grammar.ebnf(_text_of(grammar))
    return None if regex is None else Grammar.regex(regex)


def _text_of(path: Path) -> str:
    with storage_errors(path):
        return path.read_text(encoding="utf-8")
