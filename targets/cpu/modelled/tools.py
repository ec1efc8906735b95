"""LLVM's command line tools: `llc` compiles the IR of a kernel, `llvm-mca` simulates its blocks in a pipeline.

Their version must read the IR that TVM's LLVM writes, which is version 22.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

from targets.errors import ToolchainMissing
from targets.toolchain import install_line, limited, ran_over

OLDEST = 22
_NEWEST = 30
_SECONDS = 300  # of processor time, so that a busy machine makes no difference
_ANSWER_SECONDS = 300.0  # for a program to print its version
_VERSION = re.compile(r"LLVM version (\d+)\.(\d+\.\d+)")


@dataclass(frozen=True)
class LlvmTools:
    """Paths of the two programs, and the version of both."""

    llc: str
    mca: str
    version: str

    def compile(self, text: str, mcpu: str) -> str:
        """Assembly of LLVM IR, with comments that name blocks. Raises ModelError."""
        return _run([self.llc, "-O3", "--relocation-model=pic", f"--mcpu={mcpu}", "-o", "-", "-"], text)

    def cycles(self, regions: list[str], triple: str, mcpu: str, iterations: list[int]) -> list[float]:
        """Steady-state cycles of one iteration of each region (texts of instructions). Raises ModelError."""
        result = [0.0] * len(regions)
        for count in sorted(set(iterations)):
            indices = [index for index, each in enumerate(iterations) if each == count]
            text = "".join(f"// LLVM-MCA-BEGIN r{index}\n{regions[index]}\n// LLVM-MCA-END\n" for index in indices)
            if triple.startswith("x86"):
                text = text.replace("// LLVM-MCA", "# LLVM-MCA")
            command = [self.mca, f"--mtriple={triple}", f"--mcpu={mcpu}", f"--iterations={count}"]
            command += ["--json", "--all-views=false", "--summary-view", "--skip-unsupported-instructions=any"]
            for region in json.loads(_run(command, text))["CodeRegions"]:
                result[int(region["Name"][1:])] = region["SummaryView"]["TotalCycles"] / count
        return result


class ModelError(Exception):
    """A kernel's cost cannot be computed."""


@cache
def find_tools() -> LlvmTools:
    """The newest LLVM on PATH. Raises ToolchainMissing, with the package to install."""
    seen = []
    for suffix in (*(f"-{number}" for number in range(_NEWEST, OLDEST - 1, -1)), ""):
        llc, mca = shutil.which(f"llc{suffix}"), shutil.which(f"llvm-mca{suffix}")
        if llc is None or mca is None:
            continue
        versions = {_version(llc), _version(mca)}
        seen += sorted(versions)
        version = versions.pop()
        if not versions and version and int(version.split(".")[0]) >= OLDEST:
            return LlvmTools(llc, mca, version)
    problem = f"found version {', '.join(seen)}" if seen else "none is on PATH"
    raise ToolchainMissing(
        f"llc and llvm-mca of LLVM {OLDEST} or newer are needed: {problem}", install_line(f"llvm-{OLDEST}")
    )


def _version(program: str) -> str:
    """The version that a program reports; "" if it does not run."""
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_ANSWER_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _VERSION.search(text)
    return f"{found[1]}.{found[2]}" if found else ""


def _run(command: list[str], text: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        limited(command, _SECONDS), input=text, capture_output=True, text=True, env=environment, check=False
    )
    if ran_over(done.returncode):
        raise ModelError(f"{command[0]} took more than {_SECONDS} s of processor time")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise ModelError(f"{command[0]} failed: {lines[0] if lines else f'exit code {done.returncode}'}")
    return done.stdout
