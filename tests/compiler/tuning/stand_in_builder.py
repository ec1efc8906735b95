"""A build worker that also gives a stand-in for a GPU the kernels to run, in the folder that the
environment names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.tuning.measuring.build_worker import Builder
from compiler.tuning.measuring.channel import serve
from compiler.tuning.measuring.messages import BuildRequest, Built, KernelTask, WorkerSetup
from tests.targets import cuda_stand_in as stand_in

FOLDER = "STAND_IN_KERNELS_HERE"


class StandInBuilder(Builder):
    """Also builds for the mock."""

    def handle(self, request: KernelTask | BuildRequest) -> Built | None:
        built = super().handle(request)
        if built is not None and built.library is not None:
            stand_in.add_kernels(built.library.code, self._target.compiler(), Path(os.environ[FOLDER]))
        return built


def _handler(setup: WorkerSetup) -> Callable[[Any], Any]:
    return StandInBuilder(setup).handle


if __name__ == "__main__":
    serve(_handler)
