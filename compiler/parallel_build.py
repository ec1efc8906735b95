"""Kernels become objects in several processes: generating code takes most of the time of a compilation, and the engine
does it on one thread.

The engine's code generation can not run in several threads: its options of LLVM (`LLVM_OPTIONS`) belong to the process,
and the first thread to finish would take them back from the others. The processes are forked, so that they have the
kernels already, and do nothing but generate code.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import tvm

from compiler.kernel_lowering import PIPELINE

_PART = 4  # kernels of an object: fewer cost more than they share out better
_LEAST = 12  # kernels that are worth the processes


class _Work:
    """What a process was forked with: the kernels in parts, the module's attributes, the target and a folder."""

    parts: Sequence[Sequence[tuple[Any, Any]]]
    attributes: Any
    target: Any
    folder: Path


def worth_parts(kernels: Sequence[Any]) -> bool:
    """Whether to share the kernels out. Processes that may have no children (of a `multiprocessing.Pool`) do not."""
    return processes() > 1 and len(kernels) >= _LEAST and not multiprocessing.current_process().daemon


def processes() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def build_objects(kernels: Sequence[tuple[Any, Any]], attributes: Any, target: Any, folder: Path) -> list[Path]:
    """Object files of the kernels, (global variable, PrimFunc) each, for the engine's target.

    Raises what the engine raises, and BrokenProcessPool when a process dies.
    """
    work = _Work()
    work.parts = [kernels[start : start + _PART] for start in range(0, len(kernels), _PART)]
    work.attributes, work.target, work.folder = attributes, target, folder
    pool = ProcessPoolExecutor(
        min(processes(), len(work.parts)), multiprocessing.get_context("fork"), initializer=_begin, initargs=(work,)
    )
    with pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads: see above
        return [folder / name for name in pool.map(_build_part, range(len(work.parts)))]


_work: _Work


def _begin(work: _Work) -> None:
    global _work
    _work = work


def _build_part(number: int) -> str:
    with _work.target:
        part = tvm.IRModule(dict(_work.parts[number]), attrs=_work.attributes)
        library = tvm.tirx.build(part, _work.target, PIPELINE)
    name = f"kernels{number}.o"
    library.write_to_file(str(_work.folder / name), "o")
    return name
