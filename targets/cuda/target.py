"""NVIDIA GPUs. The presets are data (`presets.json`).

Kernels are CUDA source that nvcc compiles ahead of time: machine code for the target's architecture and PTX for newer
ones. The library also holds the source, compressed: without a device it runs as C++ (`cuda_simulator.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from schedules.gpu import gpu_rules
from schedules.gpu.machine import GpuMachine
from targets import registry
from targets.cpu.family import load_presets
from targets.cpu.llvm import LlvmTarget
from targets.cuda import device as cuda_device
from targets.cuda.image import replaced_source
from targets.cuda.nvcc import Nvcc, find_nvcc
from targets.cuda.performance.measurer import CudaMeasurer
from targets.cuda.simulator import CudaSimulator
from targets.errors import TargetError, ToolchainMissing
from targets.measure import Measurer
from targets.target import Target
from targets.toolchain import Compiler, Linker

if TYPE_CHECKING:
    import tvm

    from schedules.ir.tvm_types import IRModule

_PRESETS_FILE = Path(__file__).with_name("presets.json")


@dataclass(frozen=True)
class CudaTarget(Target):
    """A GPU, and the host processor that runs the virtual machine.

    Attributes:
        simulated: no machine code is generated, and modules always run simulated.
        captures_graphs: kernels between the inputs and the results are launched as CUDA graphs, recorded at the first
            run: `dataclasses.replace(targets.get("h100"), captures_graphs=True)`.
    """

    name: str
    description: str
    machine: GpuMachine
    host: LlvmTarget
    simulated: bool = False
    captures_graphs: bool = False
    times_kernels: bool = False
    memory: Literal["cpu", "cuda"] = "cuda"
    reference_rule: str = "gpu-parallel"
    lifts_workspaces: bool = True
    signed_integers: bool = True
    pipeline: Literal["processor", "gpu"] = "gpu"
    narrows_operands: bool = True

    @property
    def device(self) -> str:  # type: ignore[override]
        size = "simulated" if self.simulated else f"{self.machine.multiprocessors} multiprocessors"
        return f"sm_{self.machine.compute_capability}, {size}"

    @property
    def required_features(self) -> tuple[str, ...]:
        return self.host.required_features

    def tvm_target(self) -> tvm.target.Target:
        from schedules.ir.tir import tvm

        return tvm.target.Target(self.machine.tvm_options(), host=self.host.tvm_options())

    def tvm_options(self) -> dict[str, object]:
        return self.machine.tvm_options()

    def describe(self) -> dict[str, Any]:
        device = {"kind": "cuda", "compute_capability": self.machine.compute_capability, "simulated": self.simulated}
        device["graphs"] = self.captures_graphs
        return {**super().describe(), "device": device, "host": self.host.name}

    def linker(self) -> Linker:
        return self.host.linker()

    def compiler(self) -> Compiler:
        return self.host.compiler()

    def compilers(self) -> Nvcc:
        """The compiler of kernels. Raises ToolchainMissing with the line that installs it."""
        return find_nvcc()

    def toolchain(self) -> str:
        linker = super().toolchain()
        return linker if self.simulated else f"{linker}, {Path(self.compilers().program).name}"

    def missing_features(self) -> tuple[str, ...]:
        if missing := self.host.missing_features():
            return missing
        if self.simulated:
            return ("a simulated device",)
        needed = self.machine.compute_capability
        if any(found >= needed for found in cuda_device.compute_capabilities()):
            return ()
        return (f"an NVIDIA GPU of compute capability {needed / 10}",)

    def how_it_runs(self) -> str:
        if not self.missing_features():
            return "natively"
        try:
            self.simulator()
        except ToolchainMissing as error:
            return f"not yet: {error.hint}"
        except TargetError as error:
            return f"no: {error.message.rpartition(': ')[2]}"
        return "simulated: its kernels as C++ on this processor"

    def simulator(self) -> CudaSimulator:
        if missing := self.host.missing_features():
            raise TargetError(
                f"target {self.name!r} cannot be simulated here: this machine lacks {', '.join(missing)}",
                "export the module and load it there",
            )
        return CudaSimulator(self.host.compiler())

    def legalizations(self) -> dict[str, Any]:
        from schedules.gpu.conv_as_matmul import legalize_convolution, legalize_pad

        convolutions = {f"relax.nn.conv{rank}d": legalize_convolution for rank in (1, 2, 3)}
        return {**convolutions, "relax.nn.pad": legalize_pad}

    def measurer(self) -> Measurer | None:
        return None if self.simulated or not self.machine.clock_mhz else CudaMeasurer(self.machine)

    def schedule_rules(self) -> Sequence[Any]:
        return gpu_rules()

    def unrunnable_kernels(self, mod: IRModule) -> Sequence[str]:
        from schedules.gpu.launch import is_bound
        from schedules.ir.stages import kernels_of

        return [str(variable.name_hint) for variable, function in kernels_of(mod) if not is_bound(function.body)]

    def export_library(self, executable: Any, path: str | Path, objects: Sequence[Path] = ()) -> None:
        """Like `Target.export_library`, and compiles the kernels. Can also raise LinkError for nvcc."""
        linker = self.linker()
        nvcc = None if self.simulated else self.compilers()
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:

            def link(output: str, generated: Sequence[str], **_: object) -> None:
                machine = self.machine
                inputs = replaced_source(
                    generated, Path(folder), nvcc, machine.compute_capability, machine.shared_bytes
                )
                linker.link(Path(output), inputs, self.link_options())

            addons = [str(each) for each in objects]
            executable.export_library(str(path), fcompile=link, workspace_dir=folder, addons=addons)


def _preset(name: str, cores: int | None) -> Target:
    entry = load_presets(_PRESETS_FILE)[name]
    host = registry.get(entry["host"], cores=cores)
    if not isinstance(host, LlvmTarget):
        raise TargetError(f"the processor {entry['host']!r} beside {name!r} is not one that LLVM generates code for")
    # In the order of the class: its validation reads the processor's fields.
    machine = GpuMachine(**{**host.machine.model_dump(), **entry["machine"]})
    return CudaTarget(name, entry["description"], machine, host, bool(entry.get("simulated")))


def presets() -> dict[str, Callable[[int | None], Target]]:
    """Named targets, as functions of the core count."""
    return {name: partial(_preset, name) for name in load_presets(_PRESETS_FILE)}
