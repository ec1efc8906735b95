"""Builds a module in phases: import, passes, code, package, reference run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (before the others, so that TVM loads without torch)
import targets
from compiler.artifact import Artifact, Contents, Manifest
from compiler.artifact.artifact import artifact_bytes
from compiler.artifact.fields import decode
from compiler.artifact.language_model import DESCRIPTION_ASSET, ENCODER_ASSET, TOKENIZER_ASSET, LanguageModelDescription
from compiler.codegen.build import build_library
from compiler.device.emulation import EmulatedExecutor, EmulatedModule, Emulator, SimulatedModule
from compiler.driver.compile_options import (
    CompileOptions,
    Progress,
    check_precision,
    find_target,
    model_name,
    translated_target_errors,
)
from compiler.driver.manifest_entries import initial_states, manifest_entries, requirements, states, tensor_descriptions
from compiler.driver.module_cache import Built
from compiler.driver.sizes import specialized
from compiler.errors import InputError, InvalidModelError, OptionError, TensorwrightError, storage_errors
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.decoder import OPERAND, TOKENS
from compiler.frontends.llm.hugging_face import is_language_model
from compiler.frontends.processing import fixed_shape, with_description, with_processing
from compiler.frontends.source import ImportOptions
from compiler.generation.tokenizer import Tokenizer
from compiler.passes.canonicalize.widen_half import multiplies_halves
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import PipelineResult, run_pipeline
from compiler.passes.rewriting.substitution import loops
from compiler.records.identity import model_fingerprint
from compiler.records.library import TunedConfigs, tuned_configs
from compiler.runtime import Module
from compiler.runtime.device import load_runtime_of
from compiler.runtime.random_inputs import random_inputs
from compiler.runtime.state_sizes import has_open_capacity, state_symbols, symbols_of
from compiler.runtime.threads import check_threads
from compiler.support.model_nodes import nodes_of
from compiler.support.notebook import shortened
from compiler.support.options import ImportArguments
from compiler.support.precision import precision_of
from compiler.support.processing import Processing
from schedules.instructions.dot_products.operation import DOT_F16
from schedules.instructions.dot_products.table import tile_instruction


def build_module(
    source: object, target: str | targets.Target, options: CompileOptions, imports: ImportArguments
) -> Built:
    """The module for a model, and notes for the user. Raises like `compile`."""
    is_language = isinstance(source, str | Path) and is_language_model(Path(source))
    _check_language_options(options, imports, is_language)
    precision = precision_of("float32" if is_language or options.precision is None else options.precision)
    language = None
    if is_language:
        named = options.adapters if isinstance(options.adapters, Mapping) else {}
        language = LanguageModelOptions(
            options.precision,
            sequences=options.sequences,
            images=options.images,
            cache=options.cache,
            adapters=() if named else tuple(map(Path, options.adapters)),
            kept_adapters={name: Path(folder) for name, folder in named.items()},
        )
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
    precision = precision if options.precision is not None else _own_precision(model, chosen)
    module = _compiled(model, name, chosen, replace(options, precision=precision))
    return Built(module, tuple(model.notes), local=chosen.fits_this_machine())


def _own_precision(model: ImportedModel, target: targets.Target) -> str:
    """The precision if none is requested: float16 for a float16 model on a processor with float16 matrix tiles, which
    sum in float32. Float16 vector instructions, which also sum in float16, must be requested explicitly."""
    in_tiles = not target.narrows_operands and tile_instruction(target.machine, DOT_F16) is not None
    return "float16" if in_tiles and multiplies_halves(model.mod) else "float32"


def _check_language_options(options: CompileOptions, imports: ImportArguments, is_language: bool) -> None:
    if options.processing is not None and is_language:
        raise OptionError("processing= does not apply to language models, which process texts and images themselves")
    if options.sequences and not is_language:
        raise OptionError("sequences=True is for language models: a GGUF file, or a folder of transformers")
    if options.images and not is_language:
        raise OptionError("images=True is for language models: a folder of transformers", "leave it out")
    if is_language and imports.get("capacity") is not None:
        raise OptionError("`capacity` does not apply to language models", "pass it to the session")
    if options.adapters and not is_language:
        raise OptionError("`adapters` are for language models: a folder of transformers", "leave them out")
    if options.cache is not None and not is_language:
        raise OptionError("`cache` is an option of language models", "leave it out, or give a GGUF file or a folder")


def _processed(model: ImportedModel, source: object, importing: ImportOptions, processing: Processing) -> ImportedModel:
    """The model from an image to results; it is imported again if its image size is dynamic. Raises OptionError."""
    if processing.task in ("embed", "rerank", "speech"):
        return with_description(model, processing)
    fixed = fixed_shape(model, processing)
    if fixed is not None:
        name, shape = fixed
        model = replace(importing, shapes={**(importing.shapes or {}), name: shape}).load(source)
    return with_processing(model, processing)


def _picture(model: ImportedModel) -> dict[str, np.ndarray] | None:
    """The reference input for a model that takes one image: a small image of random pixels."""
    if [each.name for each in model.inputs] != ["image"]:
        return None
    return {"image": np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)}


def _calibrated(
    language: LanguageModelOptions | None, source: object, text: Path, options: CompileOptions
) -> LanguageModelOptions:
    """The options with the matrices that GPTQ needs. Raises like `calibration_tokens`, and OptionError for other
    models."""
    if language is None or language.precision != "int4":
        raise OptionError('`calibration` is for language models with precision="int4"', "leave it out")
    assert isinstance(source, str | Path)
    options.report("calibrate")
    model = import_language_model(Path(source), LanguageModelOptions(captures=True, adapters=language.adapters))
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
    """A line for each kernel for which a rule or a tuned config failed, so that another one is used."""
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
    example: Mapping[str, np.ndarray] | None,
    report: Progress,
) -> Module:
    """The module with an example of inputs and outputs in it.

    If the module is for another machine, the outputs are those of the same model built for this machine: an emulator is
    slow, and independently computed numbers are a better check.
    """
    load_runtime_of(target)
    foreign = not target.fits_this_machine()
    module = foreign_module(artifact, target) if foreign else Module(artifact)
    report("reference run")
    if example is None and loops(model.mod):
        report("no reference input stored: on random values its loops may not terminate; give reference_inputs=")
        return module
    try:
        return with_example(module, _host_module(model, artifact, options) if foreign else module, model, example)
    except TensorwrightError as error:
        if example is not None and not foreign:
            raise
        # Random values do not suit every model (an index out of range, sizes that must divide); the module is still
        # valid.
        report(f"no reference input stored: {error.message}")
        return module


def _target_for(target: str | targets.Target, precision: str, threads: int | None) -> targets.Target:
    """The target, after checking that it supports the options."""
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
    """The module for a target whose code this machine can run only in an emulator."""

    def emulate(loaded: Artifact) -> Emulator:
        with translated_target_errors():
            simulator = target.simulator()
            return EmulatedModule(loaded, target) if simulator is None else SimulatedModule(loaded, simulator)

    return Module(artifact, executor=EmulatedExecutor(artifact, emulate))


Array = np.ndarray
_TOKENS = 4096  # maximum number of tokens to read
_CONTEXT = 512
_STEP = 128  # tokens per run: all their operands are in memory


def calibration_tokens(text: Path, model: ImportedModel) -> Array:
    """The tokens of a text file, int64 (windows, tokens per window).

    Raises:
        StorageError: the file cannot be read or is not UTF-8.
        InputError: it has too few tokens.
        InvalidModelError: the model has no tokenizer.
    """
    with storage_errors(text):
        content = text.read_text(encoding="utf-8")
    stored = model.assets.get(TOKENIZER_ASSET)
    if stored is None:
        raise InvalidModelError("calibration needs the model's tokenizer, but it has none", "leave out the calibration")
    description = decode(bytes(model.assets[DESCRIPTION_ASSET]), LanguageModelDescription)
    encoded = Tokenizer(bytes(stored), description).encode(content[: 16 * _TOKENS])[:_TOKENS]
    window = min(_CONTEXT, description.context)
    windows = len(encoded) // window
    if not windows:
        raise InputError(
            f"{text} has {len(encoded)} tokens, but calibration needs {window} or more", "give a longer text"
        )
    tokens: Array = np.asarray(encoded[: windows * window], np.int64).reshape(windows, window)
    return tokens


def operand_grams(module: Module, tokens: Array) -> tuple[Array, ...]:
    """The sum of x xᵀ over the rows x of each operand that a module returns, float32 (depth, depth).

    Raises OptionError if the module returns no operands, because its products are of another kind.
    """
    names = [each.name for each in module.outputs if each.name.startswith(f"{OPERAND}_")]
    if not names:
        raise OptionError("the model has no products that calibration can improve", "leave out the calibration")
    grams: dict[str, Array] = {}
    for window in tokens:
        session = module.session(capacity=len(window) if has_open_capacity(module.manifest) else None)
        for start in range(0, len(window), _STEP):
            found = session.run({TOKENS: window[None, start : start + _STEP]})
            for name in names:
                rows = found[name].reshape(-1, found[name].shape[-1])
                product = rows.T @ rows
                grams[name] = grams[name] + product if name in grams else product
    return tuple(grams[name] for name in names)


Arrays = Mapping[str, np.ndarray]
_SYMBOLIC_SIZE = 2  # as in `random_inputs`
_MAX_STATE_BYTES = 1 << 16  # maximum stored size of a new state value; a full cache would be far too large


def inputs_in_order(given: Arrays | None, model: ImportedModel) -> list[np.ndarray] | None:
    """Values by name as the arguments of `main`; None unless all are present.

    Missing states and a missing position, which a session provides, are generated; their rows are within bounds.
    """
    values = dict(given or {})
    if model.states and model.position is not None:
        rows = model.position.rows
        count = rows if isinstance(rows, int) else _SYMBOLIC_SIZE
        sizes = dict.fromkeys(_row_symbols(model), 2 * count)
        made = random_inputs(model.inputs, indices=model.indices, sizes=sizes)
        made[model.position.input] = np.zeros_like(made[model.position.input])
        values = {**made, **values}
    names = [spec.name for spec in model.inputs]
    return [np.asarray(values[name]) for name in names] if set(names) <= set(values) else None


def _row_symbols(model: ImportedModel) -> set[str]:
    """Symbolic dimensions that are state capacities."""
    shapes = {spec.name: spec.shape for spec in model.inputs}
    sizes = [shapes[state.input][state.axis] for state in model.states if state.axis is not None]
    return {size for size in sizes if isinstance(size, str)}


def with_example(module: Module, runner: Module, model: ImportedModel, given: Arrays | None) -> Module:
    """The module with an example in it, which is run on `runner`, the same model for this machine.

    For a model with states, the example is the first run of a session. It does not contain the states, and contains the
    new values of small ones only.

    Raises whatever running the example raises.
    """
    own = {each.input for each in model.states} | ({model.position.input} if model.position is not None else set())
    specs = [each for each in model.inputs if each.name not in own]
    arrays = random_inputs(specs, indices=model.indices, relations=model.requirements) if given is None else given
    inputs = dict(arrays)
    sizes = {} if len(inputs) == len(model.inputs) else _state_sizes(module.manifest)
    outputs = runner.run_example(inputs, sizes)
    updated = {each.output for each in model.states}
    kept = {k: v for k, v in outputs.items() if k not in updated or v.nbytes <= _MAX_STATE_BYTES}
    return module.with_reference(inputs, kept, sizes)


def _state_sizes(manifest: Manifest) -> dict[str, int]:
    """Sizes for the state dimensions that no other input has: enough rows for one run."""
    told = set().union(*(symbols_of(each) for each in manifest.session_inputs))
    open_sizes = state_symbols(manifest) - told
    rows = manifest.position.rows if manifest.position is not None else 0
    return dict.fromkeys(sorted(open_sizes), max(_SYMBOLIC_SIZE, rows if isinstance(rows, int) else 0))
