"""NVIDIA's compiler: CUDA source to a fatbin, and ptxas' resource report for each kernel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from targets.errors import LinkError, ToolchainMissing
from targets.extras import install_command
from targets.toolchain import limited, ran_over

OVERRIDE = "TENSORWRIGHT_NVCC"
_PLACES = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
_PROCESSOR_SECONDS = 1800
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
# HFMA2.MMA is not one: it is a multiply-add of two halves, on another pipe.
_MATRIX_INSTRUCTION = re.compile(r"(?<![.\w])[A-Z]+MMA\b")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class KernelResources:
    """The resources of a kernel, as ptxas reports them; sizes are bytes per thread, `shared` bytes per block (without
    dynamic shared memory)."""

    kernel: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Nvcc:
    """The program `nvcc`."""

    program: str

    def fatbin(self, source: str, compute_capability: int) -> bytes:
        """Machine code for an architecture together with its PTX. Raises LinkError if nvcc failed; carries its
        output."""
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            image = Path(folder) / "kernels.fatbin"
            code = f"arch=compute_{compute_capability},code=[sm_{compute_capability},compute_{compute_capability}]"
            self._compile(source, ["-fatbin", "-gencode", code], image)
            return image.read_bytes()

    def cubin(self, source: str, compute_capability: int, path: Path) -> list[KernelResources]:
        """Write machine code to a file, for disassembly, and return each kernel's resources. Raises LinkError."""
        said = self._compile(source, ["-cubin", f"-arch=sm_{compute_capability}", "--ptxas-options=-v"], path)
        return _resources(said)

    def assembled(self, source: str, compute_capability: int) -> tuple[str, list[KernelResources]]:
        """PTX, and the resources of its kernels once assembled to machine code. Raises LinkError."""
        architecture = f"-arch=sm_{compute_capability}"
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            text, cubin = Path(folder) / "kernels.ptx", Path(folder) / "kernels.cubin"
            self._compile(source, ["-ptx", architecture], text)
            said = self._run(["-cubin", architecture, "--ptxas-options=-v", "-o", str(cubin), str(text)])
            return text.read_text(encoding="utf-8"), _resources(said)

    def version(self) -> str:
        """Version that nvcc reports: "13.0.88". Raises LinkError."""
        said = self._run(["--version"])
        found = re.search(r"V(\d[\d.]*)", said)
        return found[1] if found else said.strip().splitlines()[-1]

    def _compile(self, source: str, options: list[str], output: Path) -> str:
        text = output.with_suffix(".cu")
        text.write_text(source, encoding="utf-8")
        return self._run([*options, "-O3", "-std=c++17", "-w", "-o", str(output), str(text)])

    def _run(self, arguments: list[str]) -> str:
        command = limited([self.program, *arguments], _PROCESSOR_SECONDS)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran_over(done.returncode):
            raise LinkError(f"{self.program} took more than {_PROCESSOR_SECONDS} s of processor time")
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[:3000]
            raise LinkError(f"{self.program} failed with exit code {done.returncode}:\n{said}")
        return done.stdout + done.stderr


def find_nvcc() -> Nvcc:
    """The program named by TENSORWRIGHT_NVCC, on the PATH, in a usual place or in NVIDIA's Python packages.

    Raises ToolchainMissing.
    """
    override = os.environ.get(OVERRIDE)
    candidates = (override,) if override else ("nvcc", *_PLACES, _packaged("nvcc"))
    for candidate in candidates:
        if candidate and (found := shutil.which(candidate)):
            return Nvcc(found)
    where = f"{OVERRIDE} is {override!r}, which is not a program" if override else "nvcc is not on the PATH"
    raise ToolchainMissing(f"{where}; it compiles kernels for NVIDIA GPUs", install_command("cuda"))


def _resources(output: str) -> list[KernelResources]:
    """The kernels in ptxas' report."""
    resources = []
    name, spills = "", (0, 0, 0)
    for line in output.splitlines():
        if match := re.search(r"Function properties for (\S+)", line):
            name = match.group(1)
        elif match := _SPILLS.search(line):
            spills = (int(match.group(1)), int(match.group(2)), int(match.group(3)))
        elif name and (match := _REGISTERS.search(line)):
            shared = _SHARED.search(line)
            resources.append(KernelResources(name, int(match.group(1)), *spills, int(shared.group(1)) if shared else 0))
            name, spills = "", (0, 0, 0)
    return resources


def tensor_core_instructions(cubin: Path) -> dict[str, int]:
    """Number of matrix instructions (HMMA, IMMA, BMMA, DMMA, ...) in the machine code of each kernel. Raises
    ToolchainMissing if nvdisasm is not installed, and LinkError if it failed."""
    program = shutil.which("nvdisasm") or _packaged("nvdisasm")
    if program is None:
        raise ToolchainMissing("nvdisasm, which shows machine code, is not on the PATH", install_command("cuda"))
    done = subprocess.run([program, "-c", str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LinkError(f"{program} failed: {done.stderr.strip()[:2000]}")
    return matrix_instructions(done.stdout)


def matrix_instructions(disassembly: str) -> dict[str, int]:
    """Number of matrix instructions of each kernel in nvdisasm's output."""
    counts: dict[str, int] = {}
    kernel = ""
    for line in disassembly.splitlines():
        if match := re.match(r"\.text\.(\S+):", line.strip()):
            kernel = match.group(1)
            counts.setdefault(kernel, 0)
        elif kernel and _MATRIX_INSTRUCTION.search(line):
            counts[kernel] += 1
    return counts


def _packaged(name: str) -> str | None:
    """A program in NVIDIA's Python packages."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except ValueError:
        return None
    folders = spec.submodule_search_locations if spec is not None else None
    found = [path for folder in folders or () for path in Path(folder).glob(f"cu*/bin/{name}")]
    return str(found[0]) if found else None
