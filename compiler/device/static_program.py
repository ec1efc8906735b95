"""`bundle --static`: one self-contained executable with the module and the runtime."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import Artifact
from compiler.artifact.processing import takes_images
from compiler.device.bundle import (
    ONNX_RUNTIME_BYTES,
    check_accelerator,
    check_architecture,
    licenses_text,
    write_module,
)
from compiler.device.programs import (
    COMPILE_OPTIONS,
    IMAGE_SOURCES,
    LIBRARY_SOURCES,
    LOADING_SOURCES,
    RUN_SOURCES,
    SOURCES,
    THREAD_POOL_SOURCES,
    TOKENIZER_SOURCES,
    source_files,
)
from compiler.device.runtime_sources import (
    FFI_OBJECT,
    RUNTIME_OBJECT,
    compile_objects,
    ffi_source_folder,
    include_folders,
    include_options,
    runtime_objects,
)
from compiler.device.third_party_objects import third_party_includes, third_party_objects
from compiler.errors import OptionError, storage_errors
from compiler.support.cache import cached, key_of
from compiler.support.progress_bar import silent
from targets import LinkError, Target

# Without the C API, which is for the library, and without the shared library loader.
_SOURCES = (
    *(name for name in LIBRARY_SOURCES if name not in ("c_api.cc", *LOADING_SOURCES, *IMAGE_SOURCES)),
    "device_none.cc",
    "mapped_code.cc",
    "library_mapped.cc",
    "linked.cc",
    *RUN_SOURCES,
)
_RUNNER_SOURCES = ("run_main.cc",)
# Code that reads images, and its replacement in programs whose modules do not process any.
_IMAGE_OBJECTS = {"images": (*IMAGE_SOURCES, "prediction.cc"), "no_images": ("prediction_none.cc",)}
# The program that generates text around the runner.
_TEXT_SOURCES = tuple(f"text/{name}.cc" for name in ("random", "sampler", "stream", "language", "generate", "main"))
_LINK_OPTIONS = ("-static", "-s", "-Wl,--gc-sections", "-pthread")

# The module is aligned like the tensors in it.
_ASSEMBLY = """
    .section .rodata.module, "a"
    .balign 64
    .globl tensorwright_linked_start, tensorwright_linked_end
tensorwright_linked_start:
    .incbin "{module}"
tensorwright_linked_end:
    .section .data.symbols, "aw"
    .balign {word}
    .globl tensorwright_symbols
tensorwright_symbols:
{entries}
    .{word}byte 0, 0
    .section .rodata.names, "a"
{names}
    .section .note.GNU-stack, "", %progbits
"""
_TEXT_ASSEMBLY = """
    .section .rodata.text, "a"
    .balign 64
    .globl tensorwright_text_start, tensorwright_text_end
tensorwright_text_start:
    .incbin "{text}"
tensorwright_text_end:
"""


@dataclass(frozen=True)
class StaticProgram:
    """A written executable: its path, and the sizes in bytes of the file, its module and ONNX Runtime's library."""

    path: Path
    bytes: int
    module_bytes: int
    onnx_runtime_bytes: int | None


def write_static_program(
    artifact: Artifact,
    target: Target,
    output: Path,
    *,
    file: Path | None = None,
    text: bytes | None = None,
    progress: Callable[[str], None] = silent,
) -> StaticProgram:
    """Write an executable that runs the module, for any Linux of the architecture: no libraries, no Python.

    Its options are those of `tensorwright-run` without the module's path; with `text` it also generates text.
    `output`.licenses.txt is written next to it: the licenses of the linked code, which must be distributed with it.

    Args:
        file: the module's file, linked unchanged so that signatures remain valid; None: an unsigned module.
        text: the text program of a language model, from `compiler.generation.text_program.text_program`.
        progress: called with the name of each step when it begins: compiling the runtime takes minutes, once per
        target.

    Raises:
        OptionError: the file exists, the module is for another architecture, or it calls an accelerator.
        StorageError: it cannot be written.
        targets.TargetError: the toolchain is missing or failed, or the module calls an undefined function.
        MissingDependencyError: the installed TVM has no sources, or a library's are not available.
    """
    check_architecture(artifact, target)
    check_accelerator(artifact, target)
    if artifact.manifest.target.details.get("device") is not None:
        raise OptionError(
            f"a static executable cannot load the driver of a GPU, which target {target.name!r} needs",
            "create a bundle without --static",
        )
    if output.exists():
        raise OptionError(f"{output} exists", "give a new one")
    objects = _objects(target, generates=text is not None, progress=progress)
    progress("link")
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as name:
        folder = Path(name)
        module = folder / "module.twm"
        write_module(artifact, file, module)
        assembly = folder / "linked.S"
        source = _assembly(module, undefined_symbols(artifact, target, folder), target)
        if text is not None:
            (folder / "text").write_bytes(text)
            source = _TEXT_ASSEMBLY.format(text=folder / "text") + source
        assembly.write_text(source, encoding="utf-8")
        program = folder / "program"
        left_out = "no_images.o" if takes_images(artifact) else "images.o"
        linked = sorted(path for path in objects.glob("*.o") if path.name != left_out)
        target.compiler().run([*_LINK_OPTIONS, assembly, *linked, "-o", program])
        module_bytes = module.stat().st_size
        with storage_errors(output, "written"):
            shutil.copy(program, output)
            output.with_name(f"{output.name}.licenses.txt").write_text(licenses_text(), encoding="utf-8")
    size = output.stat().st_size
    return StaticProgram(output, size, module_bytes, ONNX_RUNTIME_BYTES.get(target.architecture))


def _objects(target: Target, *, generates: bool, progress: Callable[[str], None]) -> Path:
    """A folder with the object files of everything except the module."""
    progress("compile TVM's runtime")
    runtime = runtime_objects(target)
    progress("compile libsodium and Wuffs")
    third_party = third_party_objects(target)
    progress("compile the runner")
    contents = [path.read_bytes() for path in source_files()]
    key = key_of([runtime.name, *(path.parent.name for path in third_party), *COMPILE_OPTIONS, *_SOURCES, *contents])
    name = f"{target.architecture}-{key}"

    def build(folder: Path) -> None:
        own = {"program": _SOURCES, "thread_pool": THREAD_POOL_SOURCES, "main": _RUNNER_SOURCES}
        own["tokenizer"] = TOKENIZER_SOURCES
        _compile(target, {**own, **_IMAGE_OBJECTS}, folder)
        for path in (runtime / FFI_OBJECT, runtime / RUNTIME_OBJECT, *third_party):
            shutil.copy(path, folder)

    def build_text(folder: Path) -> None:
        _compile(target, {"main": _TEXT_SOURCES}, folder)
        for path in plain.glob("*.o"):
            if path.name != "main.o":
                shutil.copy(path, folder)

    plain = cached("static", name, build)
    return cached("static-text", name, build_text) if generates else plain


def _compile(target: Target, groups: Mapping[str, Sequence[str]], folder: Path) -> None:
    folders = [*include_folders(), ffi_source_folder() / "extra", *third_party_includes()]
    options = [*COMPILE_OPTIONS, *include_options(folders)]
    compile_objects(
        target, {name: [SOURCES / each for each in names] for name, names in groups.items()}, options, folder
    )


def undefined_symbols(artifact: Artifact, target: Target, folder: Path) -> list[str]:
    """Sorted names of the undefined functions of the module's library."""
    library = folder / "library.so"
    library.write_bytes(artifact.library)
    program = target.binary_utility("nm")
    done = subprocess.run([program, "-D", "--undefined-only", str(library)], capture_output=True, text=True)
    if done.returncode:
        raise LinkError(f"{program} failed: {done.stderr.strip()[-500:]}")
    lines = (line.split() for line in done.stdout.splitlines())
    # Weak symbols may be undefined.
    return sorted({name.partition("@")[0] for kind, name in lines if kind == "U"})


def _assembly(module: Path, symbols: list[str], target: Target) -> str:
    word = 4 if target.architecture == "armv7" else 8
    entries = "\n".join(f"    .{word}byte name{index}, {name}" for index, name in enumerate(symbols))
    names = "\n".join(f'name{index}: .asciz "{name}"' for index, name in enumerate(symbols))
    return _ASSEMBLY.format(module=module, word=word, entries=entries, names=names)
