"""Settings of the tests of the compiler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tvm

from targets.cpu.llvm import LlvmTarget
from tests.conftest import OPTIMIZE

# Tests of generated code and its speed, and of the processes and devices that run it.
_OF_CODE = frozenset(("codegen", "device", "profiling", "runtime", "tuning"))


@pytest.fixture(autouse=True, scope="module")
def unoptimized_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """Build modules without LLVM's optimizations in tests of stages before code generation: they took a third of the
    time."""
    if os.environ.get(OPTIMIZE) or request.path.relative_to(Path(__file__).parent).parts[0] in _OF_CODE:
        yield
        return

    def tvm_target(target: LlvmTarget) -> tvm.target.Target:
        return tvm.target.Target({**target.tvm_options(), "opt-level": 0})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlvmTarget, "tvm_target", tvm_target)
        yield
