"""Fast path for `tensorwright compile` of an unchanged model, before the parser, NumPy or TVM are loaded.

As in `make`, a file is unchanged if its inode, size and times are those of the earlier command.
"""

from __future__ import annotations

import contextlib
import getopt
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact.opening import file_state, is_private
from compiler.cli.output import print_facts, print_line
from compiler.driver.module_cache import COMMANDS, environment, limit_bytes, model_files, record_files
from compiler.reports.formatting import format_bytes
from compiler.support.cache import cache_folder, key_of

Facts = list[tuple[str, str]]

# Options whose values are not files.
_OPTIONS = ("output", "target", "shape", "sizes", "outputs", "precision", "cache", "threads", "state", "capacity")


@dataclass(frozen=True)
class Repeated:
    """A command that compiles a file: its output, and a key of its arguments and all files that it reads."""

    output: Path
    key: str

    @staticmethod
    def of(arguments: Sequence[str]) -> Repeated | None:
        """Parse the arguments; None for other commands, options that name files, or a disabled cache."""
        if arguments[:1] != ["compile"]:
            return None
        try:
            flags, paths = getopt.gnu_getopt(arguments[1:], "o:t:", [f"{each}=" for each in _OPTIONS])
            if len(paths) != 1 or not Path(paths[0]).is_file() or not limit_bytes():
                return None
            files = [*model_files(Path(paths[0])), *record_files(None)]
            states = [repr((str(each), file_state(each))) for each in files]
        except (getopt.GetoptError, OSError, ValueError):
            return None  # the command itself reports the error
        output = dict(flags).get("--output", dict(flags).get("-o")) or default_output(Path(paths[0]))
        return Repeated(Path(output), key_of([repr(arguments), os.getcwd(), environment(), *states]))

    def is_done(self) -> bool:
        """If the existing output file is up to date, print the earlier command's output and return True."""
        if not self.output.is_file() or not is_private(self._record.parent):
            return False
        try:
            stored = json.loads(self._record.read_text(encoding="utf-8"))
            if stored["states"] != [self.key, *file_state(self.output)]:
                return False
            print_facts([(str(name), str(value)) for name, value in stored["facts"]])
        except (OSError, ValueError, TypeError, KeyError):
            return False
        print_line()
        print_line(f"{self.output} is up to date, {format_bytes(self.output.stat().st_size)}")
        return True

    def remember(self, facts: Facts) -> None:
        """Store the command's printed output. If the cache cannot be written, the next run is just not fast."""
        stored = {"states": [self.key, *file_state(self.output)], "facts": facts}
        with contextlib.suppress(OSError):
            self._record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._record.write_text(json.dumps(stored), encoding="utf-8")

    @property
    def _record(self) -> Path:
        return cache_folder() / COMMANDS / key_of([str(self.output.absolute())])


def default_output(model: Path) -> Path:
    """Return the default output for a model's file or folder, in the current folder."""
    return Path(f"{model.resolve().name}.twm" if model.is_dir() else model.with_suffix(".twm").name)
