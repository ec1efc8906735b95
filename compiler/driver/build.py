"""Builds a module, phase by phase: import, passes, code, package, reference run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
import targets
from compiler.artifact import Artifact, Contents
from compiler.artifact.format import artifact_bytes
from compiler.artifact.language_model import ENCODER_ASSET
from compiler.codegen.build import build_library
from compiler.device.emulation import EmulatedModule, SimulatedModule
from compiler.driver.calibration import calibration_tokens, operand_grams
from compiler.driver.compile_options import (
    CompileOptions,
    Progress,
    check_precision,
    find_target,
    model_name,
    translated_target_errors,
)
from compiler.driver.example import inputs_in_order, with_example
from compiler.driver.manifest_entries import initial_states, manifest_entries, requirements, states, tensor_descriptions
from compiler.driver.module_cache import Built
from compiler.driver.sizes import specialized
from compiler.errors import OptionError, TensorwrightError
from compiler.frontends.file_types import is_language_model
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.processing import fixed_shape, with_description, with_processing
from compiler.frontends.source import ImportOptions
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import PipelineResult, run_pipeline
from compiler.passes.rewriting.recursion import loops
from compiler.records.identity import model_fingerprint
from compiler.records.library import TunedConfigs, tuned_configs
from compiler.runtime import Module
from compiler.runtime.accelerator import load_runtime_of
from compiler.runtime.emulated import EmulatedExecutor, Emulator
from compiler.runtime.threads import check_threads
from compiler.support.call_list import nodes_of
from compiler.support.import_arguments import ImportArguments
from compiler.support.notebook import shortened
from compiler.support.precision import precision_of
from compiler.support.processing import Processing


def build_module(
    source: object, target: str | targets.Target, options: CompileOptions, imports: ImportArguments
) -> Built:
    """The module of a model, and notes for the user; raises as `compile`."""
    is_language = isinstance(source, str | Path) and is_language_model(Path(source))
    _check_language_options(options, imports, is_language)
    precision = precision_of("float32" if is_language or options.precision is None else options.precision)
    language = None
    if is_language:
        language = LanguageModelOptions(options.precision, sequences=options.sequences, cache=options.cache)
    importing = replace(ImportOptions.of(imports), language=language)
    chosen = _target_for(target, precision, options.threads)
    if options.calibration is not None:
        language = _calibrated(language, source, Path(options.calibration), options)
        importing = replace(importing, language=language)
    options.report("import")
    model = importing.load(source)
    if options.processing is not None:
        model = _processed(model, source, importing, options.processing)
        options = replace(options, reference_inputs=options.reference_inputs or _picture(model))
    name = options.name or model_name(source)
    module = _compiled(model, name, chosen, replace(options, precision=precision))
    return Built(module, tuple(model.notes), local=chosen.fits_this_machine())


def _check_language_options(options: CompileOptions, imports: ImportArguments, is_language: bool) -> None:
    if options.processing is not None and is_language:
        raise OptionError("processing= does not apply to language models, which read texts and images by themselves")
    if options.sequences and not is_language:
        raise OptionError("sequences=True is for language models: a GGUF file, or a folder of transformers")
    if is_language and imports.get("capacity") is not None:
        raise OptionError("`capacity` does not apply to language models", "a session of theirs takes it")
    if options.cache is not None and not is_language:
        raise OptionError("`cache` is an option of language models", "leave it out, or give a GGUF file or a folder")


def _processed(model: ImportedModel, source: object, importing: ImportOptions, processing: Processing) -> ImportedModel:
    """The model from an image to its results; imported again where its image is dynamic. Raises OptionError."""
    if processing.task in ("embed", "speech"):
        return with_description(model, processing)
    fixed = fixed_shape(model, processing)
    if fixed is not None:
        name, shape = fixed
        model = replace(importing, shapes={**(importing.shapes or {}), name: shape}).load(source)
    return with_processing(model, processing)


def _picture(model: ImportedModel) -> dict[str, np.ndarray] | None:
    """The reference input of a model that takes one image: random pixels, of which there are few."""
    if [each.name for each in model.inputs] != ["image"]:
        return None
    return {"image": np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)}


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


def _compiled(model: ImportedModel, name: str, target: targets.Target, options: CompileOptions) -> Module:
    report = options.report
    if model.encoder is not None:
        report("encoder")
        parts = replace(options, sizes=None, reference_inputs=None)
        encoder = _compiled(model.encoder, f"{name}-encoder", target, parts)
        assets = {**model.assets, ENCODER_ASSET: artifact_bytes(encoder.artifact)}
        model = replace(model, assets=assets, encoder=None)
    precision = precision_of(options.precision or "float32")
    for_passes = PassOptions(precision, model.checks, model.state_positions(), model.nodes)
    tuned = tuned_configs(target, options.records, model_fingerprint(model.mod, precision))
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


def _target_for(target: str | targets.Target, precision: str, threads: int | None) -> targets.Target:
    """The target, checked to be able to do what the options ask for."""
    check_threads(threads)
    chosen = find_target(target, threads)
    check_precision(chosen, precision)
    return chosen


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
