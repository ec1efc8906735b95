"""Short summaries of why `torch.export` failed: the cause, the line of the model, and what to do."""

from __future__ import annotations

import linecache
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from compiler.errors import InvalidModelError

_FIXED_SIZE = (
    "a Python loop over that dimension, a branch on its size, or parts of a fixed size (split) fixes its size: "
    "leave the dimension out of dynamic_shapes and compile once per size, or write the loop with "
    "torch._higher_order_ops.scan, which is compiled for any length"
)
_DATA_DEPENDENT = (
    "compute both branches and select with torch.where, use torch.cond, or compile the parts around it; export models "
    "that branch on values, such as torchvision's detectors, with torch.onnx.export(dynamo=False)"
)
_INDEX = (
    "index computed positions with a one-axis tensor: cache.index_copy_(1, at, rows) or "
    "cache[:, at] with `at` of shape (1,)"
)
_OTHER = "make torch.export.export(model, example_inputs) work first"
_ONE = re.compile(r"0/1 specialized due to hint of (\d+) for dimension inputs\['(\w+)'\](?:\[\d+\])*\.shape\[(\d+)\]")
_LONGEST = 300


def capture_error(error: Exception, example: Sequence[Any] = (), remaining: str | None = None) -> InvalidModelError:
    """Return the error for a model that `torch.export` failed on with these inputs; torch's report is its cause.
    `remaining`: `dynamic_shapes` without the dimensions named in the report, if any remain."""
    text = str(error)
    where = line_of_the_model(error.__traceback__)
    if "data-dependent" in text:
        hint = f"{_INDEX}; otherwise {_DATA_DEPENDENT}" if "specialized integer" in text else _DATA_DEPENDENT
        what = f"the computation depends on the value of a tensor ({_first_line(text)})"
    elif "specialized it to be a constant" in text:
        what, hint = _summary(text), f"{_FIXED_SIZE}: {remaining or _one_size(example)}"
    elif small := _ONE.findall(text):
        what = "; ".join(
            f"dimension {axis} of {name} is dynamic, but {size} in the example" for size, name, axis in small
        )
        hint = "torch.export treats example sizes of 0 and 1 as constants: give an example with at least 2 there"
    elif "the generated guard" in text:
        what, hint = _range_of_a_dimension(text, example)
    else:
        what, hint = f"{type(error).__name__}: {_first_line(text)}", _OTHER
    return InvalidModelError(f"torch.export cannot capture the model: {what}{where}", hint)


def _range_of_a_dimension(text: str, example: Sequence[Any]) -> tuple[str, str]:
    """Return the model's constraint on a dynamic dimension, and code to paste that defines the dimension
    accordingly."""
    reasons = [line.strip().removeprefix("- ") for line in text.splitlines() if "the generated guard" in line]
    suggested = re.findall(r"^\s+(\w+) = (.*)$", text.partition("Suggested fixes:")[2], re.MULTILINE)
    if not suggested:
        return "; ".join(reasons), f"{_FIXED_SIZE}: {_one_size(example)}"
    return "; ".join(reasons), f"define the dimensions of dynamic_shapes as follows: {'; '.join(_defined(suggested))}"


def _defined(suggested: Sequence[tuple[str, str]]) -> list[str]:
    """Return torch's suggestions as Python: "h = 2*_h" requires a definition of `_h`, and a number is not a
    dimension."""
    names = {name for name, _ in suggested}
    lines = []
    for name, value in suggested:
        for root in sorted(set(re.findall(r"\b_\w+", re.sub(r"'[^']*'", "", value))) - names):
            lines.append(f"{root} = Dim({root!r}, min=1)")
            names.add(root)
        lines.append(f"{name} = None (it is only {value})" if value.isdecimal() else f"{name} = {value}")
    return lines


def _summary(text: str) -> str:
    """Return the lines of a report that state what was fixed, without torch's other suggestions."""
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if "specialized it to be" in line]
    return "; ".join(line.partition(" If you're using")[0] for line in lines) or text.strip()


def _one_size(example: Sequence[Any]) -> str:
    """Return the call that compiles for the example's sizes only."""
    shapes = [tuple(each.shape) for each in example if hasattr(each, "shape")]
    tensors = "".join(f"torch.randn{shape}, " for shape in shapes).rstrip()
    return f"tensorwright.compile(model, example_inputs=({tensors or '...'}))"


def _first_line(text: str) -> str:
    """Return the first line, without torch's remarks on its symbols."""
    line = next((each.strip() for each in text.splitlines() if each.strip()), "no message")
    line = re.sub(r"\s*\((unhinted|Size-like symbols):[^)]*\)+\.?", "", line)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."


def line_of_the_model(traceback: TracebackType | None) -> str:
    """Return the innermost line outside torch, Python and this package, as "at net.py:9, in forward: if x.sum() >
    0"."""
    line = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if _is_of_the_model(Path(code.co_filename)):
            source = linecache.getline(code.co_filename, traceback.tb_lineno).strip()
            line = f"\n  at {code.co_filename}:{traceback.tb_lineno}, in {code.co_name}: {source}"
        traceback = traceback.tb_next
    return line


def _is_of_the_model(path: Path) -> bool:
    import torch

    if path.name.startswith("<"):  # generated code
        return False
    if path.is_relative_to(Path(torch.__file__).parent) or path.is_relative_to(Path(__file__).parents[2]):
        return False
    return "site-packages" in path.parts or not path.is_relative_to(sysconfig.get_path("stdlib"))
