"""Runs CUDA kernels on the processor: their source, compiled as C++ with `simulation.h` instead of CUDA.

It checks results: indices, loop bounds, and missing synchronization if the simulated order of threads exposes it. It
does not detect races in general, and says nothing about speed.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.cuda import device as cuda_device
from targets.cuda.image import Source, has_source, source_of
from targets.errors import TargetError
from targets.toolchain import Compiler

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeModule

_HEADER = Path(__file__).with_name("simulation.h")
_OPTIONS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-w")
# Terminates the process if a vector is loaded from an address that is not a multiple of its size (devices reject that),
# or an index is outside a kernel's buffer.
_STRICT = ("-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error")
_LOADER = "ffi.Module.load_from_bytes.cuda"
_KERNEL = re.compile(
    r'extern "C" __global__ void(?: __launch_bounds__\([^)]*\))? (?P<name>\w+)\((?P<arguments>[^)]*)\) \{'
)
_COOPERATIVE = re.compile(r"__syncthreads|__shfl|__syncwarp|wmma|__activemask")
_SHARED = re.compile(
    r"__shared__\s+(?P<align>(?:alignas|__align__)\(\d+\)\s+)?(?P<type>[^;\[]+?) (?P<name>\w+)(?P<sizes>\[[^;]*);"
)
_DYNAMIC = re.compile(r"extern __shared__\s+(?:(?:alignas|__align__)\(\d+\)\s+)?(\w+) (\w+)\[\];")


@dataclass(frozen=True)
class KernelText:
    """A kernel in the source: the types of its arguments, its launch parameters ("blockIdx.x", ...), and whether its
    threads synchronize."""

    name: str
    types: tuple[str, ...]
    tags: tuple[str, ...]
    synchronizes: bool


@dataclass(frozen=True)
class CudaSimulator:
    """Loads libraries with simulated kernels."""

    compiler: Compiler

    def load(self, library: bytes | memoryview) -> RuntimeModule:
        """TVM's module of a library whose kernels run here.

        A library without kernels (a model that only returns its inputs) is loaded unchanged.

        Raises:
            TargetError: the library holds source that the simulation does not support.
            LinkError: the source does not compile; carries the compiler's output.
        """
        import tvm_ffi

        if not cuda_device.compute_capabilities():
            simulate_graphs()
        load = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
            path = Path(folder) / "model.so"
            path.write_bytes(library)
            if not has_source(library):
                return load(str(path), "so")
            kernels = self.compiled(source_of(library), Path(folder))
            with _loader(lambda _: tvm_ffi.load_module(str(kernels))):
                return load(str(path), "so")

    def compiled(
        self, source: Source, folder: Path, entry: Callable[[KernelText], str] | None = None, *, strict: bool = False
    ) -> Path:
        """A library of the simulated kernels in a folder.

        Args:
            entry: as for `simulated_text`.
            strict: vectors at addresses that a device rejects, and indices outside a kernel's own buffers, terminate
            the
                process that runs the kernels.
        """
        text = simulated_text(source, entry)
        name = f"kernels-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        path = folder / f"{name}.cc"
        path.write_text(text, encoding="utf-8")
        output = folder / f"{name}.so"
        options = (*_OPTIONS, *_STRICT) if strict else _OPTIONS
        self.compiler.run([*options, "-I", str(_HEADER.parent), "-o", str(output), str(path)])
        return output


def simulated_text(source: Source, entry: Callable[[KernelText], str] | None = None) -> str:
    """The kernels as C++, each with the entry point by which TVM calls it, or another one."""
    entry = entry if entry is not None else _entry
    first = source.text.find('extern "C" __global__')
    body = source.text[first:]
    body = _DYNAMIC.sub(r"\1* \2 = (\1*)simulation::dynamic_shared;", body)
    body = _SHARED.sub(
        r"\g<align>static \g<type> \g<name>\g<sizes>; simulation::forget(\g<name>, sizeof(\g<name>));", body
    )
    definitions = list(_KERNEL.finditer(body))
    missing = set(source.launches) - {match["name"] for match in definitions}
    if first < 0 or missing:
        raise TargetError(f"the simulation did not find these kernels in the source: {', '.join(sorted(missing))}")
    ends = [match.start() for match in definitions[1:]] + [len(body)]
    entries = [
        entry(_kernel_text(match, source.launches[match["name"]], body[match.end() : end]))
        for match, end in zip(definitions, ends, strict=True)
        if match["name"] in source.launches
    ]
    return '#include "simulation.h"\n' + body + "\n" + "\n".join(entries)


def _kernel_text(definition: re.Match[str], tags: tuple[str, ...], body: str) -> KernelText:
    types = [_argument_type(each) for each in definition["arguments"].split(",") if each.strip()]
    return KernelText(definition["name"], tuple(types), tags, _COOPERATIVE.search(body) is not None)


def _entry(kernel: KernelText) -> str:
    types = kernel.types
    values = ", ".join(f"simulation::argument<{each}>(args[{index}])" for index, each in enumerate(types))
    sizes = "".join(
        f"    {_size_of(tag)} = args[{len(types) + index}].integer;\n" for index, tag in enumerate(kernel.tags)
    )
    cooperative = "true" if kernel.synchronizes else "false"
    return (
        f'extern "C" int __tvm_ffi_{kernel.name}(void*, const simulation::Any* args, int, simulation::Any* result) {{\n'
        f"    simulation::Launch launch;\n{sizes}"
        f"    simulation::run(launch, {cooperative}, [&] {{ {kernel.name}({values}); }});\n"
        "    *result = simulation::Any{};\n    return 0;\n}\n"
    )


def _argument_type(argument: str) -> str:
    """The type of "float* __restrict__ x_ptr"."""
    words = argument.replace("__restrict__", " ").replace("*", " * ").split()
    return " ".join(words[:-1])


def _size_of(tag: str) -> str:
    if "shared" in tag:
        return "launch.dynamic_shared"
    kind, _, axis = tag.partition(".")
    return f"launch.{'grid' if kind == 'blockIdx' else 'block'}.{axis}"


@contextmanager
def _loader(load: object) -> Iterator[None]:
    """Load CUDA modules in libraries by `load` inside the block."""
    import tvm_ffi

    old_loader = tvm_ffi.get_global_func(_LOADER, allow_missing=True)
    tvm_ffi.register_global_func(_LOADER, load, override=True)
    try:
        yield
    finally:
        if old_loader is not None:
            tvm_ffi.register_global_func(_LOADER, old_loader, override=True)
        else:
            tvm_ffi.registry.remove_global_func(_LOADER)


ALLOCATE = "vm.builtin.cuda_graph.get_cached_alloc"
RUN = "vm.builtin.cuda_graph.run_or_capture"
_INVOKE = "vm.builtin.invoke_closure"


@cache
def simulate_graphs() -> None:
    """Register the functions. Not for a process that will load TVM's CUDA runtime, which defines them itself."""
    import tvm_ffi

    invoke = tvm_ffi.get_global_func(_INVOKE)
    graphs: dict[Any, Any] = {}

    def allocate(machine: object, function: object, entry: int) -> Any:
        key = (_address(machine), "memory", int(entry))
        if key not in graphs:
            graphs[key] = invoke(machine, function)
        return graphs[key]

    def run(machine: Any, function: Any, arguments: Any, entry: int, *sizes: Any) -> Any:
        key = (_address(machine), "graph", int(entry), tuple(tuple(each) for each in sizes))
        recorded = graphs.setdefault(key, arguments)
        return invoke(machine, function, *recorded)

    tvm_ffi.register_global_func(ALLOCATE, allocate)
    tvm_ffi.register_global_func(RUN, run)


def _address(machine: object) -> Any:
    return getattr(machine, "value", machine)
