"""Targets. A third party derives from `Target` and registers the object, or a function that makes it, as an entry point
of the group `tensorwright.targets`; the entry point's name is the target's name.

With an accelerator, operators that it does not support are built for the host processor.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from schedules.machine import Machine
from targets import cpuinfo
from targets.errors import TargetError, ToolchainMissing
from targets.toolchain import Compiler, Linker, find_binary_utility, find_compiler, find_linker

if TYPE_CHECKING:
    import tvm

    from schedules.ir.tvm_types import IRModule
    from targets.measure import Measurer


class Target(ABC):
    """A described machine and how to build for it.

    Attributes:
        name: the name by which users request it.
        description: one line for listings.
        machine: the description for the schedules.
        most_cores: the most cores of a machine of this kind; None if unknown.
        device: a short description of the device that computes instead of, or in addition to, the described processor;
            empty for a processor.
        quantized_everywhere: its accelerator computes only in 8-bit integers, so quantizing a model for it quantizes
            every tensor, to int8.
        integer_operators: operators other than matmuls, convolutions, moves and elementwise ones that it then computes
        in
            integers: TVM's names, with "kernel." before those of kernels.
    """

    name: str
    description: str
    machine: Machine
    most_cores: int | None = None
    device: str = ""
    quantized_everywhere: bool = False
    integer_operators: frozenset[str] = frozenset()
    signed_integers: bool = False
    """True if 8-bit integer matmuls require both operands int8; uint8 tensors are then held as int8."""
    narrows_operands: bool = False
    """True if a lower precision rounds matmul operands in the graph, not where a schedule packs them."""
    captures_graphs: bool = False
    """True if its device records runs of kernels and launches each run as one."""
    pipeline: Literal["processor", "gpu"] = "processor"
    """The list of graph passes that compile for it (`compiler.passes.phases`)."""
    times_kernels: bool = True
    """True if the tuner can time a single kernel of this target on this machine; on a device it always can."""
    memory: Literal["cpu", "cuda"] = "cpu"
    """Memory of kernels' arguments, by TVM's name of the device."""
    reference_rule: str = "fallback"
    """The schedule rule that serves any kernel; the tuner compares the results of other rules with its results."""
    lifts_workspaces: bool = False
    """True if buffers passed between a kernel's launches are tensors of the module."""

    @abstractmethod
    def tvm_target(self) -> tvm.target.Target:
        """The `tvm.target.Target` that code is generated for."""

    @property
    @abstractmethod
    def required_features(self) -> tuple[str, ...]:
        """Processor features (LLVM's names, sorted) without which the built code may not run; for the manifest."""

    @property
    def architecture(self) -> str:
        """LLVM's name of the processor architecture."""
        return self.machine.architecture

    @property
    def is_cross(self) -> bool:
        """True if code for this target cannot run here, whatever the features: another architecture."""
        return self.architecture != cpuinfo.architecture()

    def missing_features(self) -> tuple[str, ...]:
        """Features that this machine lacks to run the code; empty if it can. Another architecture is reported as a
        feature."""
        if self.is_cross:
            return (f"architecture {self.architecture}",)
        return tuple(sorted(set(self.required_features) - cpuinfo.features()))

    def fits_this_machine(self) -> bool:
        """True if code built for this target runs on this machine."""
        return not self.missing_features()

    def linker(self) -> Linker:
        """The program that links libraries for this target. Raises ToolchainMissing."""
        return find_linker()

    def compiler(self) -> Compiler:
        """The C++ compiler that builds programs for this target. Raises ToolchainMissing."""
        return find_compiler()

    def binary_utility(self, name: str) -> str:
        """A program of GNU's binary utilities ("nm") that reads this target's files. Raises ToolchainMissing."""
        return find_binary_utility(name)

    def toolchain(self) -> str:
        """The programs and packages that build for this target, for listings. Raises ToolchainMissing."""
        return " ".join(self.linker().command)

    def emulator(self) -> tuple[str, ...]:
        """The command prefix that runs a program built for this target here; empty if it runs natively.

        Raises ToolchainMissing, with the command that installs it, or TargetError if there is none.
        """
        if missing := self.missing_features():
            raise TargetError(
                f"target {self.name!r} cannot be run here: this machine lacks {', '.join(missing)}",
                "export the module and load it there",
            )
        return ()

    def how_it_runs(self) -> str:
        """How modules run on this machine: "natively", "under qemu-aarch64", or what is missing."""
        try:
            command = self.emulator()
        except ToolchainMissing as error:
            return f"not yet: {error.hint}"
        except TargetError as error:
            return f"no: {error.message.rpartition(': ')[2]}"
        return f"under {Path(command[0]).name}" if command else "natively"

    def c_sources(
        self, title: str, details: Mapping[str, object], parameters: Iterable[object]
    ) -> dict[str, str] | None:
        """For a device without an operating system: C sources of a module by file name, instead of its libraries and
        programs. None if the device runs modules.

        Args:
            title: title of the model.
            details: the passes' reports, as in the manifest.
            parameters: the module's arrays.

        Raises:
            TargetError: sources cannot be generated for the module.
        """
        return None

    def partition_passes(self) -> Sequence[Any]:
        """Graph passes of the phase "partition", in order: each a function of an IRModule that returns the module with
        the operators claimed for the target's accelerator. None for a processor."""
        return ()

    def legalizations(self) -> dict[str, Any]:
        """Lowerings that replace TVM's: `f(builder, call)` by operator."""
        return {}

    def schedule_rules(self) -> Sequence[Any] | None:
        """The schedule rules for this target's kernels; None for those of processors."""
        return None

    def unrunnable_kernels(self, mod: IRModule) -> Sequence[str]:
        """Names of a scheduled module's kernels that this target could not run; compilation then fails."""
        return ()

    def accelerator_description(self) -> dict[str, Any] | None:
        """Plain data that determines costs on an accelerator, including its name as "accelerator" and "cores". None for
        a processor."""
        return None

    def measurer(self) -> Measurer | None:
        """Measurer that computes the cost of kernels if there is no device to time them; None if there is no such
        model."""
        return None

    def simulator(self) -> Any | None:
        """Simulator that runs a device's kernels on this machine's processor: `load(library)` returns TVM's module.
        None if modules run natively, or under `emulator()`. Raises ToolchainMissing."""
        return None

    def load_runtime(self) -> None:
        """Register functions that built modules call in addition to TVM's own: a driver, or a simulator of the
        accelerator. Called before a module of this target is loaded; does nothing for a processor."""
        return

    def link_options(self) -> tuple[str, ...]:
        """Extra arguments for the linker."""
        return ()

    @property
    def builds_in_parts(self) -> bool:
        """True if kernels may be built separately, as objects that are linked to the executable."""
        return False

    def export_library(self, executable: Any, path: str | Path, objects: Sequence[Path] = ()) -> None:
        """Write a built executable (anything with TVM's `export_library`) as a shared library, `objects` with it.

        Raises ToolchainMissing if there is no linker and LinkError if it fails.
        """
        linker = self.linker()
        options = self.link_options()

        def link(output: str, objects: Sequence[str], **_: object) -> None:
            linker.link(Path(output), objects, options)

        # A folder of its own: TVM's cleanups remove whole folders.
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            addons = [str(each) for each in objects]
            executable.export_library(str(path), fcompile=link, workspace_dir=folder, addons=addons)

    def describe(self) -> dict[str, Any]:
        """Facts recorded in a manifest: name, architecture, features and the machine; JSON-serializable."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "required_features": list(self.required_features),
            "machine": self.machine.model_dump(mode="json"),
            "engine_target": {key: _plain(value) for key, value in self.tvm_options().items()},
        }

    def tvm_options(self) -> dict[str, object]:
        """The options of `tvm_target`, as plain data."""
        return {}


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | list) else str(value)


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

    def tvm_options(self) -> dict[str, object]:
        return self.processor.tvm_options()

    def linker(self) -> Linker:
        return self.processor.linker()

    def compiler(self) -> Compiler:
        return self.processor.compiler()

    def binary_utility(self, name: str) -> str:
        return self.processor.binary_utility(name)

    def link_options(self) -> tuple[str, ...]:
        return self.processor.link_options()
