"""Builds single kernels for trials. A process of `python -m compiler.tuning.measuring.build_worker`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm

from compiler.codegen.kernel_lowering import PIPELINE
from compiler.passes.schedule.lift_workspaces import with_workspaces_as_parameters
from compiler.tuning.measuring.channel import serve
from compiler.tuning.measuring.messages import (
    AS_IT_IS,
    Argument,
    BuildRequest,
    Built,
    KernelLibrary,
    KernelTask,
    WorkerSetup,
)
from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.ir.stages import Kernel, dtype_of, shape_of
from schedules.ir.tir import structural_walk, tirx
from schedules.selection.apply import apply_rule
from schedules.selection.registry import rules
from targets.toolchain import Linker, find_linker

SYMBOL = "kernel"
# A kernel needs no C start files, and a bare linker takes a tenth of a compiler driver's time.
_BARE_LINKERS = (("ld",), ("ld.lld",), ("cc",), ("gcc",), ("clang",))


class Builder:
    """Answers build requests for known tasks."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._target = setup.target
        self._machine = setup.target.machine
        self._tvm_target = setup.target.tvm_target()
        self._rules = {rule.name: rule for rule in (*rules(), *(setup.target.schedule_rules() or ()))}
        self._kernels: dict[str, tuple[Kernel, str]] = {}

    def handle(self, request: KernelTask | BuildRequest) -> Built | None:
        """Register a task, or build."""
        if isinstance(request, KernelTask):
            self._kernels[request.key] = (Kernel.of(tvm.ir.load_json(request.function)), request.rule)
            return None
        start = time.perf_counter()
        try:
            library, tasks = self._build(request)
        except Exception as error:  # TVM passes on any exception of its passes
            return Built(None, 1, in_short(error), time.perf_counter() - start)
        return Built(library, tasks, "", time.perf_counter() - start)

    def _build(self, request: BuildRequest) -> tuple[KernelLibrary, int]:
        function = self.scheduled(request)
        return self.linked(function), parallel_tasks(function)

    def scheduled(self, request: BuildRequest) -> Any:
        """The PrimFunc described by a request. Raises NotScheduledError, and TVM's errors."""
        kernel, rule_name = self._kernels[request.key]
        if rule_name == AS_IT_IS:
            return kernel.function
        rule = self._rules[self._target.reference_rule if request.config is None else rule_name]
        workload = rule.match(kernel, self._machine)
        if workload is None:
            raise NotScheduledError(f"rule {rule.name!r} does not serve the kernel")
        config = request.config
        if config is None:
            config = rule.default(workload, self._machine) if rule.space(workload, self._machine).knobs else Config()
        return apply_rule(rule, kernel, workload, config, self._machine)

    def linked(self, function: object) -> KernelLibrary:
        """A scheduled PrimFunc as a shared library."""
        workspaces: tuple[Argument, ...] = ()
        if self._target.lifts_workspaces:
            function, count = with_workspaces_as_parameters(function)
            workspaces = _results(function, count)
        return KernelLibrary(self._code(function), workspaces)

    def module(self, function: Any) -> Any:
        """TVM's module of a scheduled PrimFunc."""
        function = function.with_attr("global_symbol", SYMBOL).with_attr("tirx.is_scheduled", True)
        with self._tvm_target:
            return tvm.tirx.build(tvm.IRModule({SYMBOL: function}), self._tvm_target, PIPELINE)

    def _code(self, function: Any) -> bytes:
        library = self.module(function)
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            path = Path(folder) / "kernel.so"
            if self._target.fits_this_machine():
                objects = Path(folder) / "kernel.o"
                library.write_to_file(str(objects), "o")
                _linker().link(path, [objects])
            else:
                self._target.export_library(library, path)
            return path.read_bytes()


def in_short(error: Exception) -> str:
    """The last line of an exception's text, for a record."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()
    return (text[-1] if text else "")[-300:]


def _results(function: Any, count: int) -> tuple[Argument, ...]:
    """The last parameters of a function of static shapes."""
    buffers = list(function.params)[len(function.params) - count :]
    return tuple(Argument(tuple(map(int, shape_of(each))), dtype_of(each), is_output=True) for each in buffers)


def parallel_tasks(function: Any) -> int:
    """The iterations of the largest parallel loop; 1 if there is none."""
    extents = [1]

    def visit(loop: Any) -> None:
        if loop.kind == tirx.ForKind.PARALLEL and isinstance(loop.extent, tirx.IntImm):
            extents.append(int(loop.extent.value))

    structural_walk(function.body, (tirx.For, visit))
    return max(extents)


@cache
def _linker() -> Linker:
    return find_linker(_BARE_LINKERS)


def _handler(setup: WorkerSetup) -> Callable[[Any], Any]:
    return Builder(setup).handle


if __name__ == "__main__":
    serve(_handler)
