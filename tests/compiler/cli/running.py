"""Running the command line from tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from compiler.cli import output


@dataclass(frozen=True)
class Result:
    """Exit code and output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Parse standard output as JSON."""
        return json.loads(self.out)


class Run(Protocol):
    """The fixture `tensorwright`."""

    def __call__(self, *arguments: object) -> Result: ...


@contextmanager
def isolated_consoles() -> Iterator[None]:
    """Recreate the consoles for the current streams."""
    output.result_console.cache_clear()
    output.message_console.cache_clear()
    try:
        yield
    finally:
        output.result_console.cache_clear()
        output.message_console.cache_clear()
