"""Execution of kernels: in this process, or on a device behind TVM's RPC server."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.tuning.measuring.device_names import LOCAL, parse_device
from compiler.tuning.measuring.messages import WorkerSetup

Array = np.ndarray
SYMBOL = "kernel"
_REACH_SECONDS = 3.0


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel, and the clock to time it with.

    `evaluate(arguments, seconds)` times it if that must be done on the device itself.
    """

    call: Callable[..., Any]
    clock: Callable[[], float] = time.perf_counter
    evaluate: Callable[[tuple[Any, ...], float], list[float]] | None = None


class Runner(Protocol):
    """A device; `name` is set if it was chosen from a fleet."""

    name: str

    def tensor(self, array: Array, dtype: str) -> Any:
        """A copy of an array on the device."""

    def fill(self, tensor: Any, array: Array) -> None:
        """Overwrite a tensor."""

    def fetch(self, tensor: Any, dtype: str) -> Array:
        """A local copy of a tensor."""

    def load(self, library: bytes) -> Kernel:
        """Load a kernel's library."""


def make_runner(setup: WorkerSetup) -> Runner:
    """The runner for a device: "local", "HOST:PORT" of an RPC server, or "KEY@HOST:PORT" of a tracker."""
    return LocalRunner(setup.threads) if setup.device == LOCAL else RpcRunner(setup)


class LocalRunner:
    """This process, with TVM's runtime but without its compiler."""

    name = ""

    def __init__(self, threads: int) -> None:
        from compiler.runtime.threads import run_with
        from targets import cpuinfo

        cpuinfo.features()  # requests features that a process must ask the system for
        self._threads = threads
        self._run_with = run_with

    def tensor(self, array: Array, dtype: str) -> Any:
        from compiler.runtime.tensors import aligned_copy, tensor_over

        element = ELEMENT_TYPES[dtype]
        return tensor_over(aligned_copy(array, element), element)

    def fill(self, tensor: Any, array: Array) -> None:
        from compiler.runtime.tensors import array_over

        array_over(tensor, ELEMENT_TYPES[str(tensor.dtype)])[...] = array

    def fetch(self, tensor: Any, dtype: str) -> Array:
        from compiler.runtime.tensors import array_over

        return np.array(array_over(tensor, ELEMENT_TYPES[dtype]))

    def load(self, library: bytes) -> Kernel:
        from compiler.runtime.library import load_executable

        function = load_executable(library)[SYMBOL]
        self._run_with(self._threads, lambda: None)
        # One thread's processor time excludes other programs.
        return Kernel(function, time.thread_time if self._threads == 1 else time.perf_counter)


class RpcRunner:
    """A device behind TVM's RPC server; times are taken on the device."""

    def __init__(self, setup: WorkerSetup) -> None:
        import schedules.ir.load_tvm  # noqa: F401  (TVM without torch)

        # isort: split
        import tvm
        from tvm import rpc

        from compiler.device.tunnel import connect_rpc
        from compiler.tuning.measuring.fleet import request_server

        self._tvm = tvm
        key, host, port = parse_device(setup.device)
        self.name = ""
        if key:
            address = request_server(key, (host, port))
            self._session = rpc.connect(*address, session_timeout=int(setup.timeout) * 60)
            self.name = f"{address[0]}:{address[1]}"
        else:
            self._session = connect_rpc(f"{host}:{port}", setup.credentials, int(setup.timeout) * 60)
        self._device = self._session.device(setup.memory)
        self._session.get_function("runtime.config_threadpool")(1, setup.threads)
        self._loads = 0

    def tensor(self, array: Array, dtype: str) -> Any:
        return self._tvm.runtime.tensor(np.ascontiguousarray(array), device=self._device)

    def fill(self, tensor: Any, array: Array) -> None:
        tensor.copyfrom(np.ascontiguousarray(array))

    def fetch(self, tensor: Any, dtype: str) -> Array:
        return np.asarray(tensor.numpy())

    def load(self, library: bytes) -> Kernel:
        self._loads += 1
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            path = Path(folder) / f"kernel-{os.getpid()}-{self._loads}.so"
            path.write_bytes(library)
            self._session.upload(str(path))
            module = self._session.load_module(path.name)
        function = module.get_function(SYMBOL)

        def evaluate(arguments: tuple[Any, ...], seconds: float) -> list[float]:
            repeat = 24  # short ones: some fit between the time slices of other programs
            timer = module.time_evaluator(
                SYMBOL, self._device, number=1, repeat=repeat, min_repeat_ms=max(1, int(1e3 * seconds / repeat))
            )
            return [float(each) for each in timer(*arguments).results]

        return Kernel(function, evaluate=evaluate)


def is_reachable(device: str) -> bool:
    """True if something listens at the address of a server or tracker."""
    _, host, port = parse_device(device)
    try:
        socket.create_connection((host, port), _REACH_SECONDS).close()
    except OSError:
        return False
    return True
