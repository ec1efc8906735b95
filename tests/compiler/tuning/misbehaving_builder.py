"""A build worker for tests of the pool; the config makes kernels compute, crash, hang or give wrong results."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from compiler.tuning.measuring.build_worker import Builder
from compiler.tuning.measuring.channel import serve
from compiler.tuning.measuring.messages import BuildRequest, Built, KernelLibrary, KernelTask, WorkerSetup
from schedules.codegen.nest import repeat, store
from schedules.config import Config
from schedules.ir.tir import tirx


class Misbehaving(Builder):
    """The config's "mode" decides how the kernel behaves."""

    def handle(self, request: KernelTask | BuildRequest) -> Built | None:
        if isinstance(request, KernelTask) or request.config is None:
            return super().handle(request)
        mode = str(request.config["mode"])
        if mode == "build-crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if mode == "build-hang":
            time.sleep(600)
        if mode == "build-error":
            return super().handle(BuildRequest("unknown", Config()))
        if mode == "good":
            return super().handle(BuildRequest(request.key, None))
        return Built(self.misbehaving(request.key, mode))

    def misbehaving(self, key: str, mode: str) -> KernelLibrary:
        """The library of a known task's kernel."""
        return self.linked(_bad_kernel(self._kernels[key][0].function, mode))


def _bad_kernel(function: Any, mode: str) -> Any:
    target = function.params[-1]

    def body(i: Any) -> Any:
        if mode == "crash":
            return tirx.Evaluate(tirx.call_extern("int32", "abort"))
        if mode == "hang":
            return tirx.Evaluate(tirx.call_extern("int32", "pause"))
        if mode == "wild":
            return store(target, tirx.const(1.0, "float32"), i * 4096, i)
        return store(target, tirx.const(0.25, "float32"), 0, i)

    code = repeat("i", 64 if mode != "wild" else 1 << 20, body)
    return tirx.PrimFunc(list(function.params), code).with_attrs(
        {"global_symbol": "kernel", "tirx.noalias": True, "s_tir": True}
    )


def _handler(setup: WorkerSetup) -> Callable[[Any], Any]:
    return Misbehaving(setup).handle


if __name__ == "__main__":
    serve(_handler)
