"""An estimate worker for tests of the pool; the config makes it answer, compute forever or sleep."""

from __future__ import annotations

import time
from collections.abc import Callable

from compiler.tuning.measuring.channel import serve
from compiler.tuning.measuring.messages import BuildRequest, Estimated, KernelTask, WorkerSetup


def _handle(request: KernelTask | BuildRequest) -> Estimated | None:
    if isinstance(request, KernelTask):
        return None
    assert request.config is not None
    while request.config["mode"] == "compute":
        pass
    while request.config["mode"] == "sleep":
        time.sleep(600)
    return Estimated(1.0)


def _handler(_: WorkerSetup) -> Callable[[KernelTask | BuildRequest], Estimated | None]:
    return _handle


if __name__ == "__main__":
    serve(_handler)
