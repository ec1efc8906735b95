"""`main`: run a command, and turn errors and interrupts into messages and an exit code.

Exit codes: 0 success, 2 user error, 70 internal error, 130 interrupted by Ctrl-C, 143 terminated by SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from types import FrameType, TracebackType

from compiler.cli.output import EXIT_INTERNAL_ERROR, EXIT_INTERRUPTED, EXIT_USER_ERROR, print_error
from compiler.cli.repeated import Repeated
from compiler.errors import TensorwrightError, UserError
from compiler.support.interrupts import interruptible

DEBUG_VARIABLE = "TENSORWRIGHT_DEBUG"
_REPORT = "this is a defect of Tensorwright: please report it with the model, the command, and the output of --debug"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `argv` excludes the program's name, None for `sys.argv`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    with Interrupts() as interrupts:
        try:
            code = _run(arguments)
            return _interrupted(interrupts) if code == EXIT_INTERRUPTED else code
        except BrokenPipeError:
            return _reader_left()
        except SystemExit as error:
            return _code_of(error)
        except KeyboardInterrupt:
            return _interrupted(interrupts)
        except Exception as error:
            return _explain(error, debug, as_json="--json" in arguments)


@interruptible
def _run(arguments: list[str]) -> int:
    repeated = Repeated.of(arguments)
    if repeated is not None and repeated.is_done():
        return 0
    from typer.main import get_command

    from compiler.cli.app import application

    result = get_command(application(arguments)).main(args=arguments, prog_name="tensorwright", standalone_mode=False)
    sys.stdout.flush()
    if repeated is not None and repeated == Repeated.of(arguments) and isinstance(result, list):
        repeated.remember(result)
    return result if isinstance(result, int) else 0


def _code_of(error: SystemExit) -> int:
    """Return the exit code if the parser exits by itself: 0 after a shell completion, 1 after a broken pipe."""
    return _reader_left() if error.code == 1 else int(error.code or 0)


def _reader_left() -> int:
    """Handle a closed output pipe (as by `head`), which is no error; nothing more can be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _interrupted(interrupts: Interrupts) -> int:
    print_error(interrupts.word, None)
    return interrupts.exit_code


def _explain(error: Exception, debug: bool, as_json: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    message, hint, code = _describe(error)
    print_error(message, hint)
    if as_json:
        print(json.dumps({"error": {"class": type(error).__name__, "message": message, "hint": hint}}, indent=2))
    return code


def _describe(error: Exception) -> tuple[str, str | None, int]:
    """Return message, hint and exit code of an error."""
    if isinstance(error, UserError):
        hint = None if error.hint is None else with_option_names(error.hint)
        return with_option_names(error.message), hint, error.exit_code
    if isinstance(error, TensorwrightError):
        return error.message, "; ".join(filter(None, [error.hint, _REPORT])), error.exit_code
    if hasattr(error, "format_message"):  # the parser refuses the command line
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "tensorwright"
        return str(error.format_message()), f"see {command} --help", EXIT_USER_ERROR
    name = type(error).__name__
    text = str(error).strip()
    return f"unexpected {name}: {text}" if text else f"unexpected {name}", _REPORT, EXIT_INTERNAL_ERROR


_OPTIONS = {
    "at": "--at",
    "blank": "--blank",
    "boxes": "--boxes",
    "budget": "--budget",
    "calibration": "--samples",
    "capacity": "--capacity",
    "constants": "--constant",
    "decide": "--decide",
    "devices": "--device",
    "extra": "--extra-words",
    "feeds": "--feeds",
    "group": "--group",
    "inputs": "--input",
    "keep_slower": "--keep-slower",
    "max_drop": "--max-drop",
    "max_false_hits": "--max-false-hits",
    "measure": "--measure",
    "memory_limit": "--sram",
    "method": "--method",
    "output": "--scored-output",
    "outputs": "--outputs",
    "passes": "--pass",
    "recipe": "--recipe",
    "records": "--records",
    "reference": "--with",
    "runs": "--runs",
    "sampler": "--sampler",
    "scheme": "--scheme",
    "seconds": "--seconds",
    "shapes": "--shape",
    "sizes": "--sizes",
    "space": "--space",
    "state": "--state",
    "storage": "--storage",
    "task": "--task",
    "time_budget": "--time-budget",
    "tokenizer": "--tokenizer",
    "tolerance": "--tolerance",
    "trials": "--trials",
}
_NAMES = "|".join(_OPTIONS)
# "passes= has", "trials=0", "calibration[0]", "sizes['n']", and "shapes: " where a message begins.
_IN_PARENTHESES = re.compile(rf"\(({_NAMES})=\)")
_ARGUMENT = re.compile(rf"(?<![\w.(,-])(?<!, )({_NAMES})(=|(?=\[)|(?=: ))(?P<value>[\w.'\"-]*)")


def with_option_names(text: str) -> str:
    """Replace argument names by option names; API calls in the text, such as compile(..., shapes=...), are kept."""

    def renamed(match: re.Match[str]) -> str:
        option, value = _OPTIONS[match[1]], match["value"]
        if match[2] == "=" and text[match.end() :][:1] in ("[", "{", "(") and not value:
            return match[0]  # a Python literal follows
        if not match[2] and text[match.end() : match.end() + 1] == ":" and match.start() > 0:
            return match[0]  # a word of the sentence
        return f"{option} {value}" if match[2] and value else option

    return _ARGUMENT.sub(renamed, _IN_PARENTHESES.sub(lambda match: f"({_OPTIONS[match[1]]})", text))


_PATIENCE_SECONDS = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_EXIT_BASE = 128  # a shell's exit code for a program that was killed by a signal, minus the signal's number


class Interrupts:
    """While active, SIGINT and SIGTERM raise KeyboardInterrupt once and are enforced. `received`: the signal; None if
    there was none yet."""

    def __init__(self, patience: float = _PATIENCE_SECONDS) -> None:
        self.received: signal.Signals | None = None
        self._patience = patience
        self._ended = threading.Event()
        self._active = threading.current_thread() is threading.main_thread()
        self._reader, self._writer = -1, -1
        self._previous: list[object] = []
        self._previous_fd = -1
        self._folder = TemporaryFiles()

    @property
    def exit_code(self) -> int:
        """Exit code of an interrupted command."""
        return _EXIT_BASE + (self.received or signal.SIGINT)

    @property
    def word(self) -> str:
        """Message about the interrupt."""
        return "terminated" if self.received == signal.SIGTERM else "interrupted"

    def __enter__(self) -> Interrupts:
        if self._active:
            self._folder.make()
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous = [signal.signal(each, self._handle) for each in _SIGNALS]
            self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._enforce, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._active:
            signal.set_wakeup_fd(self._previous_fd)
            for each, previous in zip(_SIGNALS, self._previous, strict=True):
                signal.signal(each, previous)  # type: ignore[arg-type]
            os.write(self._writer, b"\0")  # lets the thread end
            self._thread.join()
            os.close(self._writer)
            os.close(self._reader)
            self._folder.remove()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:  # a second signal must not stop the cleanup after the first
            self.received = signal.Signals(number)
            raise KeyboardInterrupt

    def _enforce(self) -> None:
        number = os.read(self._reader, 1)
        while not self._ended.is_set() and number[0] not in _SIGNALS:
            number = os.read(self._reader, 1)
        if not self._ended.wait(self._patience):
            self.received = signal.Signals(number[0])
            os.write(2, f"\nerror: {self.word}\n".encode())
            _end_children()
            _remove_unfinished()
            self._folder.remove()
            os._exit(self.exit_code)


class TemporaryFiles:
    """A folder for all temporary files of this process and its child processes."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._before: tuple[str | None, str | None] = (None, None)

    def make(self) -> None:
        """Make `tempfile`, and programs that use TMPDIR, use the folder; if none can be created, nothing changes."""
        with contextlib.suppress(OSError):
            self._folder = tempfile.mkdtemp(prefix="tensorwright-")
        if self._folder is not None:
            self._before = tempfile.tempdir, os.environ.get("TMPDIR")
            tempfile.tempdir = os.environ["TMPDIR"] = self._folder

    def remove(self) -> None:
        """Remove it and its contents."""
        if self._folder is None:
            return
        tempfile.tempdir, variable = self._before
        if variable is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None


def _end_children() -> None:
    """Kill all descendants of this process."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _remove_unfinished() -> None:
    storage = sys.modules.get("compiler.artifact.storage")
    if storage is not None:
        storage.remove_unfinished()
