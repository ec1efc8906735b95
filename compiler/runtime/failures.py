"""Translates TVM's run-time errors into this project's errors."""

from __future__ import annotations

import re

from compiler.artifact.entries import CHECK_MARK
from compiler.errors import InputError, InternalError

_HINT = "the sizes or values of the inputs do not fit this model: change them, or compile the model for these sizes"
_MARKED = re.compile(re.escape(CHECK_MARK) + r"\[(.*?)\](?: |$)", re.DOTALL)
_NUMBERS = re.compile(r"\((-?\d+) vs\. (-?\d+)\)")


def engine_error(error: Exception, inputs: int) -> InputError | InternalError:
    """The error to raise in place of `error`, raised by a run on `inputs` inputs.

    Checks inside the module catch invalid inputs that the manifest cannot describe: relations between symbolic sizes,
    sizes computed from values, conditions that select a branch that was not compiled, assertions.
    """
    text = str(error).strip()
    marked = _MARKED.search(text)
    if marked is not None:
        return InputError(_check_text(marked[1], text), _HINT)
    for index in range(inputs):
        if f"loc=param[{index}]" in text:
            return InputError(f"the inputs do not fit the model: {text}")
    if "match_cast error" in text:
        return InputError(_check_text("a size inside the model", text), _HINT)
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return InputError("not enough memory to run the model on these inputs", "use smaller inputs")
    if isinstance(error, AssertionError) or type(error).__name__ == "AssertionError":
        return InputError(f"an assertion of the model failed: {text}", _HINT)
    return InternalError(f"the module failed while running: {text}", "please report this, with the model")


def _check_text(what: str, text: str) -> str:
    """Description of a check; and the sizes, unless it gives a reason of its own (`node: reason`)."""
    numbers = _NUMBERS.search(text)
    if ": " in what or numbers is None:
        return what
    return f"{what}: a dimension is {numbers[1]}, expected {numbers[2]}"
