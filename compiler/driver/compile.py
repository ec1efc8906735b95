"""`compile`: a model in, a runnable module out, phase by phase."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
import targets
from compiler.artifact import Artifact, Contents
from compiler.artifact.format import artifact_bytes
from compiler.artifact.language_model import ENCODER_ASSET
from compiler.codegen.build import build_library
from compiler.device.emulation import EmulatedModule
from compiler.device.simulation import SimulatedModule
from compiler.driver.calibration import calibration_tokens, operand_grams
from compiler.driver.example import inputs_in_order, with_example
from compiler.driver.manifest_entries import initial_states, manifest_entries, requirements, states, tensor_descriptions
from compiler.driver.sizes import Sizes, specialized
from compiler.errors import OptionError, TensorwrightError, ToolchainError, UnknownTargetError, type_text
from compiler.frontends.file_types import is_language_model
from compiler.frontends.import_arguments import ImportArguments, takes_imports
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.source import ImportOptions
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import PipelineResult, run_pipeline
from compiler.passes.registry import PassLike
from compiler.passes.rewriting.recursion import loops
from compiler.records.identity import model_fingerprint
from compiler.records.library import RecordSource, TunedConfigs, tuned_configs
from compiler.runtime import Module
from compiler.runtime.accelerator import load_runtime_of
from compiler.runtime.emulated import EmulatedExecutor, Emulator
from compiler.runtime.threads import check_threads
from compiler.support.call_list import nodes_of
from compiler.support.notebook import shortened
from compiler.support.precision import precision_of
from compiler.support.progress_bar import automatic, is_silent, shows_progress, silent
from compiler.support.rare_collections import collecting_rarely

Progress = Callable[[str], None]
# What a target's machine needs for a lower precision, and targets that have it.
_NEEDS = {
    "bf16": ("bf16_dot_product", "bfloat16 dot product", "znver4, sapphire-rapids, a100, h100"),
    "float16": ("float16_product", "products of float16 with float32 sums", "t4, a100, h100"),
}


@shows_progress
@collecting_rarely
@takes_imports
def compile(
    source: object,
    target: str | targets.Target = "host",
    *,
    sizes: Sizes | None = None,
    precision: str | None = None,
    sequences: bool = False,
    cache: str | None = None,
    calibration: str | Path | None = None,
    threads: int | None = None,
    passes: Mapping[str, PassLike | None] | None = None,
    dump: str | Path | None = None,
    verify: bool = False,
    reference_inputs: Mapping[str, np.ndarray] | None = None,
    records: RecordSource = None,
    progress: Progress | None = automatic,
    **imports: Unpack[ImportArguments],
) -> Module:
    """Compile a model for a target.

    Args:
        source: a path to an .onnx or .pt2 file, an `onnx.ModelProto` (or its bytes), a `torch.nn.Module` with
            `example_inputs`, a `torch.export.ExportedProgram`, or a Relax `IRModule`; or a language model: a GGUF file,
            or a folder of the transformers library with config.json and safetensors (see `tensorwright.generation`).
        target: a name of `tensorwright targets`, or a `targets.Target`; "host" is this machine's processor.
        shapes: sizes of inputs by name; an int fixes a dimension, a string keeps it symbolic, and equal strings are
            equal sizes: `{"input_ids": ("batch", 64)}`.
        sizes: of dynamic dimensions, those that get code of their own beside the code for every size: by dimension
            (`{"batch": [1, 8]}`, each combination of several), or whole shapes by input
            (`{"x": [(1, 3, 224, 224), (8, 3, 224, 224)]}`). All share the weights.
        constants: values of inputs that are fixed now; they are no longer inputs of the module.
        example_inputs: positional arguments of a `torch.nn.Module`, or a dictionary of keyword arguments.
        dynamic_shapes: which dimensions of them stay symbolic, as `torch.export.export` takes it.
        outputs: names of those to return, in this order (of an ONNX model any value of its main graph); all when None.
            What nothing else needs is not compiled.
        state: what a session keeps (`Module.session`): of an ONNX model, the output that is the next value of an input,
            where "*" stands for the same text in both: `{"past_key_values.*": "present.*"}`; None: pairs of the usual
            names; {}: none. Of a PyTorch model, inputs that it writes to (["*"]: all of them); buffers that it writes
            to always are states. Of both, pairs whose output is the input with rows appended to it grow from run to
            run.
        capacity: how many rows states that grow have room for; such a state is a buffer then, and a run writes its new
            rows alone. A name makes it a symbolic dimension that `Module.session(capacity=...)` chooses. None: each
            run returns a longer tensor.
        precision: "float32", "bf16" or "float16" (or "fp32", "bfloat16", "fp16", ...). "bf16" rounds the operands of
            convolutions and of products with constant weights to bfloat16 (sums stay float32), and stores what lies
            between convolutions so; it needs a target with a bfloat16 dot product. Depthwise convolutions and attention
            compute in float32. "float16" is the same with float16, for graphics processors: what lies beyond 65504
            becomes infinite. None is "float32". Of a language model it says what weights are stored as, "int8" and
            "int4" among them; None keeps what the file has.
        sequences: build a language model so that a run reads tokens of several sequences, for
            `tensorwright.generation.Scheduler` and for speculative decoding.
        cache: the type of the keys and values that a language model keeps: "float32", "float16", "bfloat16" or "int8",
            which has a scale for each head and row; None for float32 beside float32 weights and float16 beside others.
        calibration: a text file; the weights of a language model with `precision="int4"` are rounded so that its
            products change least on the first 4,096 tokens of the text (GPTQ).
        threads: how many threads the module runs on; the target's cores when None.
        passes: the user's own graph passes: `{"after:fold-constants": my_pass}`; see `tensorwright passes`.
        dump: a folder that receives the module after each pass as TVMScript.
        verify: run the module after each pass against the unoptimized one, on `reference_inputs` where given; slow,
            for finding defects.
        reference_inputs: what to store as the reference input; random values when None.
        records: tuning records: None for those that ship and the user's own (`tune` writes them), False for none; a
            file or folder, or several, in place of the user's own.
        progress: called with the name of each step as it begins; a bar on terminals and in notebooks unless given, and
            None for nothing.

    Returns:
        A `Module`: `module.run(inputs)`, `module.export("model.twm")`.

    Raises:
        UserError: the model, an option or the environment is at fault (see `tensorwright.errors`).
        InternalError: a defect of Tensorwright; the message names the phase or pass.
    """
    is_language = isinstance(source, str | Path) and is_language_model(Path(source))
    if sequences and not is_language:
        raise OptionError("sequences=True is for language models: a GGUF file, or a folder of transformers")
    if is_language and imports.get("capacity") is not None:
        raise OptionError("`capacity` does not apply to language models", "a session of theirs takes it")
    if cache is not None and not is_language:
        raise OptionError("`cache` is an option of language models", "leave it out, or give a GGUF file or a folder")
    options = CompileOptions(
        sizes=sizes,
        precision=precision_of("float32" if is_language or precision is None else precision),
        threads=threads,
        passes=passes,
        dump=dump,
        verify=verify,
        reference_inputs=reference_inputs,
        records=records,
        progress=progress,
    )
    language = LanguageModelOptions(precision, sequences=sequences, cache=cache) if is_language else None
    importing = replace(ImportOptions.of(imports), language=language)
    chosen = _target_for(target, options.precision, threads)
    if calibration is not None:
        importing = replace(importing, language=_calibrated(language, source, Path(calibration), options))
    options.report("import")
    model = importing.load(source)
    for note in model.notes:
        if is_silent(progress):
            warnings.warn(note, stacklevel=3)
        options.report(note)
    return _compiled(model, model_name(source), chosen, options)


def _calibrated(
    language: LanguageModelOptions | None, source: object, text: Path, options: CompileOptions
) -> LanguageModelOptions:
    """The options with what GPTQ needs. Raises as `calibration_tokens`, and OptionError for other models."""
    if language is None or language.precision != "int4":
        raise OptionError('`calibration` is for language models with precision="int4"', "leave it out")
    assert isinstance(source, str | Path)
    options.report("calibrate")
    model = import_language_model(Path(source), LanguageModelOptions(captures=True))
    tokens = calibration_tokens(text, model)
    whole = CompileOptions(threads=options.threads, records=options.records)
    module = _compiled(model, model_name(source), _target_for("host", "float32", options.threads), whole)
    return replace(language, grams=operand_grams(module, tokens))


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """The options of `compile` but for those of importing; it describes the fields."""

    sizes: Sizes | None = None
    precision: str = "float32"
    threads: int | None = None
    passes: Mapping[str, PassLike | None] | None = None
    dump: str | Path | None = None
    verify: bool = False
    reference_inputs: Mapping[str, np.ndarray] | None = None
    records: RecordSource = None
    progress: Progress | None = None

    @property
    def report(self) -> Progress:
        """Receives the name of each step."""
        return self.progress if self.progress is not None else silent


def _compiled(model: ImportedModel, name: str, target: targets.Target, options: CompileOptions) -> Module:
    report = options.report
    if model.encoder is not None:
        report("encoder")
        parts = replace(options, sizes=None, reference_inputs=None)
        encoder = _compiled(model.encoder, f"{name}-encoder", target, parts)
        assets = {**model.assets, ENCODER_ASSET: artifact_bytes(encoder.artifact)}
        model = replace(model, assets=assets, encoder=None)
    for_passes = PassOptions(options.precision, model.checks, model.state_positions(), model.nodes)
    tuned = tuned_configs(target, options.records, model_fingerprint(model.mod, options.precision))
    if options.sizes is not None:
        model = specialized(model, options.sizes)
    for problem in tuned.problems:
        report(f"tuning records: {problem}")
    context = PipelineContext(
        target=target,
        machine=target.machine,
        options=for_passes,
        configs=tuned if tuned else None,
        choose=tuned.choose if tuned else None,
        settings=tuned.settings,
    )
    pipeline = run_pipeline(
        model.mod,
        context,
        passes=options.passes,
        dump=options.dump,
        verify=options.verify,
        example_inputs=inputs_in_order(options.reference_inputs, model) if options.verify else None,
        progress=report,
    )
    for line in schedule_failures(pipeline):
        report(line)
    report("build")
    artifact = packed(model, name, target, pipeline, options.threads, tuned)
    return _with_reference(artifact, model, target, for_passes, options.reference_inputs, report)


def packed(
    model: ImportedModel,
    name: str,
    target: targets.Target,
    pipeline: PipelineResult,
    threads: int | None,
    tuned: TunedConfigs | None = None,
) -> Artifact:
    """The module's contents: code built for the target, parameters and manifest."""
    with translated_target_errors():
        library = build_library(pipeline.mod, target)
    return Artifact.create(
        model_name=name,
        inputs=tensor_descriptions(model.inputs),
        outputs=tensor_descriptions(model.outputs),
        library=library,
        contents=Contents(
            parameters=pipeline.stored_parameters(),
            # Modules hold no strings, only values computed from them.
            fixed={name: array for name, array in model.fixed.items() if array.dtype != object},
            initial_states=initial_states(model),
            assets=model.assets,
        ),
        compact_parameters=len(pipeline.expansions.stored),
        **requirements(model),
        **states(model),
        threads=threads,
        **manifest_entries(target, pipeline, tuned),
    )


def schedule_failures(pipeline: PipelineResult) -> list[str]:
    """A line for each kernel on which a rule or a tuned config failed, so that another one is used."""
    report = pipeline.report.schedules

    def label(kernel: str) -> str:
        nodes = shortened(nodes_of(kernel, pipeline.report.calls))
        return f"kernel {kernel}" + (f" ({nodes})" if nodes else "")

    return [
        f"{label(kernel.kernel)}: {failure.rule}: {failure.error}"
        for kernel in (report.failures if report is not None else ())
        for failure in kernel.failures
    ]


def find_target(target: str | targets.Target, cores: int | None = None) -> targets.Target:
    """The target of that name, scheduled for `cores` threads.

    Raises UnknownTargetError with suggestions, and OptionError for what is neither a name nor a target.
    """
    if isinstance(target, targets.Target):
        return target
    if not isinstance(target, str):
        raise OptionError(f"{type_text(target)} is not a target", "give a name of `tensorwright targets`, or a Target")
    with translated_target_errors():
        return targets.get(target, cores=cores)


def _target_for(target: str | targets.Target, precision: str, threads: int | None) -> targets.Target:
    """The target, checked to be able to do what the options ask for."""
    check_threads(threads)
    chosen = find_target(target, threads)
    check_precision(chosen, precision)
    return chosen


def check_precision(target: targets.Target, precision: str) -> None:
    """Raise OptionError unless a target computes in a precision of `PRECISIONS`."""
    if precision in _NEEDS:
        needed, what, having = _NEEDS[precision]
        if not getattr(target.machine, needed):
            raise OptionError(
                f"target {target.name!r} has no {what}",
                f"name a target that has ({having}), or leave precision at float32",
            )


@contextmanager
def translated_target_errors() -> Iterator[None]:
    """Translates errors of the lower layers into errors of this package."""
    try:
        yield
    except targets.UnknownTarget as error:
        raise UnknownTargetError(error.message, error.hint) from error
    except targets.TargetError as error:
        raise ToolchainError(error.message, error.hint) from error


def _with_reference(
    artifact: Artifact,
    model: ImportedModel,
    target: targets.Target,
    options: PassOptions,
    given: Mapping[str, np.ndarray] | None,
    report: Progress,
) -> Module:
    """The module, with an example of inputs and outputs in it.

    Of a module for another machine the outputs are those of the same model built for this one: an emulator is slow,
    and numbers of another origin are the better check.
    """
    load_runtime_of(target)
    foreign = not target.fits_this_machine()
    module = foreign_module(artifact, target) if foreign else Module(artifact)
    report("reference run")
    if given is None and loops(model.mod):
        report("no reference input stored: on random values its loops may not terminate; give reference_inputs=")
        return module
    try:
        return with_example(module, _host_module(model, artifact, options) if foreign else module, model, given)
    except TensorwrightError as error:
        if given is not None and not foreign:
            raise
        # Random values do not suit every model (an index out of range, sizes that must divide); the module is sound.
        report(f"no reference input stored: {error.message}")
        return module


def _host_module(model: ImportedModel, like: Artifact, options: PassOptions) -> Module:
    """The same model built for this machine."""
    host = _target_for("host", options.precision, 1)
    pipeline = run_pipeline(model.mod, PipelineContext(target=host, machine=host.machine, options=options))
    return Module(packed(model, like.manifest.model_name, host, pipeline, 1), threads=1)


def foreign_module(artifact: Artifact, target: targets.Target) -> Module:
    """The module of a target that this machine can run only under the target's emulator."""

    def emulate(whole: Artifact) -> Emulator:
        with translated_target_errors():
            simulator = target.simulator()
            return EmulatedModule(whole, target) if simulator is None else SimulatedModule(whole, simulator)

    return Module(artifact, executor=EmulatedExecutor(artifact, emulate))


def model_name(source: object) -> str:
    """A name for a source that `compile` takes: of its file, its graph, or its class."""
    if isinstance(source, str | Path):
        return Path(source).stem
    name = getattr(source if isinstance(source, ImportedModel) else getattr(source, "graph", None), "name", None)
    name = name if isinstance(name, str) and name else type(source).__name__
    return re.sub(r"[^\w.-]+", "_", name)[:200]
