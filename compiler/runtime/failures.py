"""What TVM raises while a module runs, as errors of this project."""

from __future__ import annotations

import re

from compiler.artifact.entries import CHECK_MARK
from compiler.errors import InputError, InternalError

_HINT = "the sizes or values of the inputs do not fit this model; change them, or compile it for these sizes"
_MARKED = re.compile(re.escape(CHECK_MARK) + r"\[(.*?)\](?: |$)", re.DOTALL)
_NUMBERS = re.compile(r"\((-?\d+) vs\. (-?\d+)\)")


def engine_error(error: Exception, inputs: int) -> InputError | InternalError:
    """The error to raise in place of `error`, which came out of a run on `inputs` inputs.

    Checks inside of a module fail for inputs that the manifest could not tell to be wrong: relations between symbolic
    sizes, sizes that are computed from values, conditions that ask for a branch that was left out, assertions.
    """
    text = str(error).strip()
    marked = _MARKED.search(text)
    if marked is not None:
        return InputError(_check_text(marked[1], text), _HINT)
    for index in range(inputs):
        if f"loc=param[{index}]" in text:
            return InputError(f"the inputs do not fit the model: {text}")
    if "match_cast error" in text:
        return InputError(_check_text("a size inside of the model", text), _HINT)
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return InputError("one run on these inputs needs more memory than there is", "give it smaller inputs")
    if isinstance(error, AssertionError) or type(error).__name__ == "AssertionError":
        return InputError(f"an assertion of the model failed: {text}", _HINT)
    return InternalError(f"the module failed while running: {text}", "please report this, with the model")


def _check_text(what: str, text: str) -> str:
    """What a check is for; and the sizes, unless it gives a reason of its own (`node: reason`)."""
    numbers = _NUMBERS.search(text)
    if ": " in what or numbers is None:
        return what
    return f"{what}: a dimension is {numbers[1]} where {numbers[2]} is needed"
