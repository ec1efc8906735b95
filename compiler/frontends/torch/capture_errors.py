"""Summarizes in a line or two why `torch.export` failed: the cause, the line of the model, and what to do."""

from __future__ import annotations

import linecache
import re
import sysconfig
from pathlib import Path
from types import TracebackType

from compiler.errors import InvalidModelError

_FIXED_SIZE = (
    "a loop of Python over that dimension, or a branch on its size, fixes it, and so do parts of a fixed size (split): "
    "leave the dimension out of dynamic_shapes, or write the loop with torch._higher_order_ops.scan, which is compiled "
    "for any length"
)
_DATA_DEPENDENT = (
    "compute both branches and choose with torch.where, use torch.cond, or compile the parts around it; models that "
    "decide by values, as torchvision's detectors, become ONNX by torch.onnx.export(dynamo=False)"
)
_INDEX = (
    "write to and read from computed places with a tensor of one axis, cache.index_copy_(1, at, rows) or "
    "cache[:, at] with `at` of shape (1,)"
)
_OTHER = "make torch.export.export(model, example_inputs) work first"
_LONGEST = 300


def capture_error(error: Exception) -> InvalidModelError:
    """The error of a model that `torch.export` stopped at; torch's own report is its cause."""
    text = str(error)
    where = line_of_the_model(error.__traceback__)
    if "data-dependent" in text:
        hint = f"{_INDEX}; else {_DATA_DEPENDENT}" if "specialized integer" in text else _DATA_DEPENDENT
        what = f"a value of a tensor decides what is computed ({_first_line(text)})"
    elif "specialized it to be a constant" in text:
        what, hint = text.strip(), _FIXED_SIZE
    elif "the generated guard" in text:
        what, hint = _range_of_a_dimension(text)
    else:
        what, hint = f"{type(error).__name__}: {_first_line(text)}", _OTHER
    return InvalidModelError(f"torch.export cannot capture the model: {what}{where}", hint)


def _range_of_a_dimension(text: str) -> tuple[str, str]:
    """What the model requires of a dynamic dimension, and the range that torch suggests for it."""
    reasons = [line.strip().removeprefix("- ") for line in text.splitlines() if "the generated guard" in line]
    suggested = re.findall(r"^\s+(\w+ = .*)$", text.partition("Suggested fixes:")[2], re.MULTILINE)
    hint = f"give dynamic_shapes the range that torch suggests: {'; '.join(suggested)}" if suggested else _FIXED_SIZE
    return "; ".join(reasons), hint


def _first_line(text: str) -> str:
    """The first line, without what torch says of its symbols."""
    line = next((each.strip() for each in text.splitlines() if each.strip()), "no message")
    line = re.sub(r"\s*\((unhinted|Size-like symbols):[^)]*\)+\.?", "", line)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."


def line_of_the_model(traceback: TracebackType | None) -> str:
    """The innermost line that is neither torch's, Python's nor ours, as "at net.py:9, in forward: if x.sum() > 0"."""
    found = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if _is_of_the_model(Path(code.co_filename)):
            source = linecache.getline(code.co_filename, traceback.tb_lineno).strip()
            found = f"\n  at {code.co_filename}:{traceback.tb_lineno}, in {code.co_name}: {source}"
        traceback = traceback.tb_next
    return found


def _is_of_the_model(path: Path) -> bool:
    import torch

    if path.name.startswith("<"):  # generated code
        return False
    if path.is_relative_to(Path(torch.__file__).parent) or path.is_relative_to(Path(__file__).parents[2]):
        return False
    return "site-packages" in path.parts or not path.is_relative_to(sysconfig.get_path("stdlib"))
