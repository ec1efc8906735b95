"""An accelerator beside a processor: operators that the accelerator does not support are built for the processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.target import Target
from targets.toolchain import Compiler, Linker

if TYPE_CHECKING:
    import tvm


class AcceleratedTarget(Target):
    """Base of targets that are a processor with an accelerator. Everything about building for the processor is
    delegated to `processor`; subclasses define `name`, `description`, `partition_passes()` and `load_runtime()`."""

    def __init__(self, processor: Target) -> None:
        """`processor` is another target: `targets.get("host")`, or one to cross-compile for."""
        self.processor = processor
        self.machine = processor.machine

    @property
    def required_features(self) -> tuple[str, ...]:
        return self.processor.required_features

    @property
    def builds_in_parts(self) -> bool:
        return self.processor.builds_in_parts

    def tvm_target(self) -> tvm.target.Target:
        return self.processor.tvm_target()

    def engine_options(self) -> dict[str, object]:
        return self.processor.engine_options()

    def linker(self) -> Linker:
        return self.processor.linker()

    def compiler(self) -> Compiler:
        return self.processor.compiler()

    def binary_utility(self, name: str) -> str:
        return self.processor.binary_utility(name)

    def link_options(self) -> tuple[str, ...]:
        return self.processor.link_options()
