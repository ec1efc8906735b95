"""`main`: run a command, and turn whatever ends it into messages and an exit code.

Exit codes: 0 success, 2 user error, 70 internal error, 130 interrupted by Ctrl-C, 143 terminated by SIGTERM.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence

from compiler.cli.exit_codes import EXIT_INTERNAL_ERROR, EXIT_INTERRUPTED, EXIT_USER_ERROR
from compiler.cli.interrupts import Interrupts
from compiler.cli.option_names import with_option_names
from compiler.cli.output import print_error
from compiler.errors import TensorwrightError, UserError
from compiler.support.interrupts import interruptible

DEBUG_VARIABLE = "TENSORWRIGHT_DEBUG"
_REPORT = "this is a defect of Tensorwright: please report it with the model, the command, and the output of --debug"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; `argv` without the program's name, `sys.argv` when None. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    with Interrupts() as interrupts:
        try:
            return _run(arguments, interrupts)
        except BrokenPipeError:
            return _reader_left()
        except SystemExit as error:
            return _code_of(error)
        except KeyboardInterrupt:
            return _interrupted(interrupts)
        except Exception as error:
            return _explain(error, debug, as_json="--json" in arguments)


@interruptible
def _run(arguments: list[str], interrupts: Interrupts) -> int:
    from typer.main import get_command

    from compiler.cli.app import application

    result = get_command(application(arguments)).main(args=arguments, prog_name="tensorwright", standalone_mode=False)
    sys.stdout.flush()
    if result == EXIT_INTERRUPTED:
        return _interrupted(interrupts)
    return result if isinstance(result, int) else 0


def _code_of(error: SystemExit) -> int:
    """The parser exits by itself after serving a shell's completion (0), or when the reader of our output left (1)."""
    return _reader_left() if error.code == 1 else int(error.code or 0)


def _reader_left() -> int:
    """The reader closed our output (as `head` does), which is no error; nothing more can be written."""
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
    """Message, hint and exit code of an error."""
    if isinstance(error, UserError):
        hint = None if error.hint is None else with_option_names(error.hint)
        return with_option_names(error.message), hint, error.exit_code
    if isinstance(error, TensorwrightError):
        return error.message, "; ".join(filter(None, [error.hint, _REPORT])), error.exit_code
    if hasattr(error, "format_message"):  # a command line that the parser refuses
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "tensorwright"
        return str(error.format_message()), f"see {command} --help", EXIT_USER_ERROR
    name = type(error).__name__
    text = str(error).strip()
    return f"unexpected {name}: {text}" if text else f"unexpected {name}", _REPORT, EXIT_INTERNAL_ERROR
