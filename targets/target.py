"""Targets. A third party derives from `Target` and names the object, or a function that makes it, by an entry point of
the group `tensorwright.targets`; the entry point's name is the target's name.

Of an accelerator beside a processor, operators that the accelerator does not support are built for the processor.
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
        name: how the user asks for it.
        description: one line for listings.
        machine: what the schedules need to know.
        most_cores: the most cores of a machine of this kind; None where not known.
        device: a short description of the device that computes instead of, or beside, the described processor; empty
            for a processor.
        quantized_everywhere: its accelerator computes in 8-bit integers only, so quantizing a model for it rounds
            every tensor, to int8.
        integer_operators: the operators besides products, moves and elementwise ones that it then computes in integers:
            TVM's names, and "kernel." before those of kernels.
    """

    name: str
    description: str
    machine: Machine
    most_cores: int | None = None
    device: str = ""
    quantized_everywhere: bool = False
    integer_operators: frozenset[str] = frozenset()
    signed_integers: bool = False
    """True if products of 8-bit integers want both operands int8; tensors of uint8 are then held as int8."""
    narrows_operands: bool = False
    """True if a lower precision rounds the operands of products in the graph, not where a schedule packs them."""
    captures_graphs: bool = False
    """True if its device records runs of kernels and launches each as one."""
    pipeline: Literal["processor", "gpu"] = "processor"
    """The list of graph passes that compiles for it (`compiler.passes.phases`)."""
    times_kernels: bool = True
    """True if the tuner can time a kernel of this target alone on this machine; on a device it always can."""
    memory: Literal["cpu", "cuda"] = "cpu"
    """Memory of kernels' arguments, as TVM names the device."""
    reference_rule: str = "fallback"
    """The schedule rule that serves any kernel; the tuner compares what other rules give with its numbers."""
    lifts_workspaces: bool = False
    """True if buffers that a kernel's launches hand to each other are tensors of the module."""

    @abstractmethod
    def tvm_target(self) -> tvm.target.Target:
        """TVM's `tvm.target.Target` that code is generated for."""

    @property
    @abstractmethod
    def required_features(self) -> tuple[str, ...]:
        """Processor features (LLVM's names, sorted) without which the built code may not run; for the
        manifest."""

    @property
    def architecture(self) -> str:
        """The processor architecture as LLVM names it."""
        return self.machine.architecture

    @property
    def is_cross(self) -> bool:
        """True if code for this target cannot run here, whatever the features: another architecture."""
        return self.architecture != cpuinfo.architecture()

    def missing_features(self) -> tuple[str, ...]:
        """Features that this machine lacks to run the code; empty when it fits. Another architecture is named as
        one."""
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
        """The command in front of a program built for this target that runs it here; empty where it runs as it is.

        Raises ToolchainMissing, with the line that installs it, or TargetError where there is none.
        """
        if missing := self.missing_features():
            raise TargetError(
                f"target {self.name!r} cannot be run here: this machine lacks {', '.join(missing)}",
                "export the module and load it there",
            )
        return ()

    def how_it_runs(self) -> str:
        """The way a module runs on this machine, in a few words: "natively", "under qemu-aarch64", or what is
        missing."""
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
        """For a device without an operating system: C sources of a module by file name, in place of its libraries and
        programs. None where the device runs modules.

        Args:
            title: title of the model.
            details: what the passes reported, as in the manifest.
            parameters: the module's arrays.

        Raises:
            TargetError: the module is none that sources can be made of.
        """
        return None

    def partition_passes(self) -> Sequence[Any]:
        """Graph passes of the phase "partition", in order: each a function of an IRModule that gives the module back
        with what the target's accelerator takes over claimed for it. None for a processor."""
        return ()

    def legalizations(self) -> dict[str, Any]:
        """Lowerings that replace TVM's: `f(builder, call)` by operator."""
        return {}

    def schedule_rules(self) -> Sequence[Any] | None:
        """The schedule rules for this target's kernels; None for those of processors."""
        return None

    def unrunnable_kernels(self, mod: IRModule) -> Sequence[str]:
        """Names of a scheduled module's kernels that this target could not run; the compilation then stops."""
        return ()

    def accelerator_description(self) -> dict[str, Any] | None:
        """Plain data that costs on an accelerator depend on, its name as "accelerator" and "cores" among them. None for
        a processor."""
        return None

    def measurer(self) -> Measurer | None:
        """Measurer that computes the cost of kernels where no device is at hand to time them; None where nothing
        can."""
        return None

    def simulator(self) -> Any | None:
        """Simulator that runs the kernels of a device on this machine's processor: `load(library)` gives TVM's module.
        None where modules run as they are, or under `emulator()`. Raises ToolchainMissing."""
        return None

    def load_runtime(self) -> None:
        """Make the functions known that built modules call beside TVM's own: a driver, or a simulator of the
        accelerator. Called before a module of this target is made ready; nothing for a processor."""
        return

    def link_options(self) -> tuple[str, ...]:
        """Extra arguments for the linker."""
        return ()

    @property
    def builds_in_parts(self) -> bool:
        """True if kernels may be built apart from each other, as objects that are linked to the executable."""
        return False

    def export_library(self, executable: Any, path: str | Path, objects: Sequence[Path] = ()) -> None:
        """Write a built executable (anything with TVM's `export_library`) as a shared library, `objects` with it.

        Raises ToolchainMissing when there is no linker and LinkError when it fails.
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
        """Facts that a manifest records: name, architecture, features and the machine; JSON-serializable."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "required_features": list(self.required_features),
            "machine": self.machine.model_dump(mode="json"),
            "engine_target": {key: _plain(value) for key, value in self.engine_options().items()},
        }

    def engine_options(self) -> dict[str, object]:
        """The options that `tvm_target` is made of, plain data."""
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
