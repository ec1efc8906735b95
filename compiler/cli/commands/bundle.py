"""`tensorwright bundle`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.cli import options
from compiler.cli.options import command_of, flag, option
from compiler.cli.output import print_json, print_line, print_table
from compiler.cli.progress import Steps
from compiler.errors import OptionError
from compiler.reports.formatting import format_bytes, plural

HELP = """Write a folder with everything a device needs to run a module without Python.

The folder contains the module, the runtime's libraries, a runner, a device server, a C header with its library, and an
example that `make` builds. With --static, one executable without any libraries is written; for a language model it
generates text. With --triton, a model repository for Triton Inference Server is written; more modules can be added.

[bold]Typical[/]

  tensorwright compile model.onnx --target raspberry-pi-5 -o model.twm
  tensorwright bundle model.twm --output model-bundle

[bold]Examples[/]

  One file that runs on any Linux of the architecture:
    tensorwright bundle model.twm --static --output model && scp model pi: && ssh pi ./model --verify --runs 20

  One file that generates text, with the model's tokenizer in it:
    tensorwright compile SmolLM2-135M-Instruct.Q4_1.gguf --target raspberry-pi-5 -o smollm2.twm
    tensorwright bundle smollm2.twm --static --output smollm2 && scp smollm2 pi: && ssh pi ./smollm2 -p "Hello!"

  A model repository for Triton, and its backend:
    tensorwright bundle model.twm --triton serve && make -C serve/backends/tensorwright
"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    module: Path = options.MODULE_PATH
    output: Path | None = option(
        "The folder (MODULE-bundle), or the file of --static (MODULE).", "PATH", "--output", "-o"
    )
    target: str | None = option("The device; the module's target if not given.", "NAME", "--target", "-t")
    static: bool = flag("Write one executable instead of a folder.", "--static")
    no_text: bool = flag("With --static, for a language model: the plain runner, without its tokenizer.", "--no-text")
    raw: bool = flag("With --static, for a language model: continue prompts without the chat template.", "--raw")
    triton: Path | None = option("A model repository for Triton Inference Server; created or extended.", "DIR")
    name: str | None = option("With --triton: the model's name; the file's name if not given.", "NAME")
    max_batch_size: int | None = option(
        "With --triton: maximum rows per batch; 0: no batching. 32 if not given and rows are independent.", "N"
    )
    instances: int | None = option("With --triton: concurrent runs; processors / threads if not given.", "N")
    trusted: list[Path] | None = options.TRUSTED_KEYS
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> None:
    from compiler.artifact import read_artifact
    from compiler.cli.paths import check_is_module
    from compiler.driver.compile import find_target, translated_target_errors

    check_is_module(given.module)
    if given.triton is not None and (given.static or given.output is not None):
        raise OptionError("--triton takes neither --static nor --output")
    if given.triton is None and (given.name, given.max_batch_size, given.instances) != (None, None, None):
        raise OptionError("--name, --max-batch-size and --instances are for --triton")
    if not given.static and (given.no_text or given.raw):
        raise OptionError("--no-text and --raw are for --static")
    artifact = read_artifact(given.module, given.trusted or None)
    with translated_target_errors():
        device = find_target(given.target or artifact.manifest.target.name)
        if given.triton is not None:
            _triton(
                artifact,
                given.module,
                device,
                given.triton,
                (given.name, given.max_batch_size, given.instances),
                given.as_json,
            )
        elif given.static:
            program = given.output if given.output is not None else given.module.with_suffix("")
            _static(
                artifact,
                given.module,
                device,
                program,
                _text_of(artifact, no_text=given.no_text, raw=given.raw),
                given.as_json,
            )
        else:
            _folder(
                artifact,
                given.module,
                device,
                given.output if given.output is not None else Path(f"{given.module.stem}-bundle"),
                given.as_json,
            )


def _folder(artifact: Any, module: Path, target: Any, output: Path, as_json: bool) -> None:
    from compiler.device.bundle import write_bundle

    bundle = write_bundle(artifact, target, output, file=module)
    if as_json:
        print_json(
            {"folder": bundle.folder, "files": dict(bundle.files), "runtime_bytes": bundle.runtime_bytes,
             "onnx_runtime_bytes": bundle.onnx_runtime_bytes}
        )  # fmt: skip
        return
    print_table(("file", "size"), [(name, format_bytes(size)) for name, size in bundle.files.items()], ("size",))
    print_line()
    if not bundle.runtime_bytes:
        print_line(f"wrote {bundle.folder}; its header documents the functions")
        return
    print_line(f"runtime: {format_bytes(bundle.runtime_bytes)}{_compared(bundle.onnx_runtime_bytes)}")
    print_line(f"wrote {bundle.folder}; see its README")


def _triton(
    artifact: Any,
    module: Path,
    target: Any,
    output: Path,
    settings: tuple[str | None, int | None, int | None],
    as_json: bool,
) -> None:
    from compiler.serving.triton import TritonOptions, write_triton_repository

    written = write_triton_repository(artifact, module, target, output, TritonOptions(*settings))
    if as_json:
        print_json({**asdict(written), "folder": str(written.folder)})
        return
    rows = f"up to {written.max_batch_size} rows per batch" if written.max_batch_size else "no batches"
    runs = plural(written.instances, "run")
    print_line(f"model {written.name!r}, version {written.version}: {runs} at a time, {rows}")
    print_line(f"wrote {written.folder}; build the backend: make -C {written.folder}/backends/tensorwright")


def _text_of(artifact: Any, *, no_text: bool, raw: bool) -> bytes | None:
    """Return the data that a language model's executable needs to generate text; None for other modules."""
    from compiler.generation.text_program import has_text, text_program

    if not has_text(artifact):
        if no_text or raw:
            raise OptionError("--no-text and --raw are for language models with a tokenizer, and this module is none")
        return None
    return None if no_text else text_program(artifact, raw=raw)


def _static(artifact: Any, module: Path, target: Any, output: Path, text: bytes | None, as_json: bool) -> None:
    from compiler.device.static_program import write_static_program

    with Steps() as steps:
        program = write_static_program(artifact, target, output, file=module, text=text, progress=steps)
    if as_json:
        print_json({**asdict(program), "path": str(program.path)})
        return
    runtime = format_bytes(program.bytes - program.module_bytes)
    print_line(f"module: {format_bytes(program.module_bytes)}")
    print_line(f"runtime: {runtime}{_compared(program.onnx_runtime_bytes)}")
    options = "--verify --runs 20" if text is None else '-p "Hello!"'
    print_line(f"wrote {program.path}: {program.path.name} {options}")


def _compared(onnx_runtime_bytes: int | None) -> str:
    if onnx_runtime_bytes is None:
        return ""

    return f" (libonnxruntime.so 1.32.0 for this architecture: {format_bytes(onnx_runtime_bytes)})"
