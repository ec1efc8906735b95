"""`compile`: a model in, a runnable module out; what was compiled before comes out of the cache."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from typing_extensions import Unpack

import targets
from compiler.driver import module_cache
from compiler.driver.compile_options import (
    CompileOptions,
    Progress,
    check_precision,
    find_target,
    model_name,
    translated_target_errors,
)
from compiler.support.compilation import collecting_rarely
from compiler.support.hub import download, hub_model
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, options_of, takes_imports
from compiler.support.processing import Processing
from compiler.support.progress_bar import automatic, is_silent, shows_progress

if TYPE_CHECKING:
    from compiler.driver.sizes import Sizes
    from compiler.passes.registry import PassLike
    from compiler.records.library import RecordSource
    from compiler.runtime import Module


__all__ = ["check_precision", "compile", "find_target", "model_name", "translated_target_errors"]


@interruptible
@shows_progress
@collecting_rarely
@takes_imports
def compile(
    source: object,
    target: str | targets.Target = "host",
    *,
    sizes: Sizes | None = None,
    processing: Processing | Literal["auto"] | None = None,
    precision: str | None = None,
    sequences: bool = False,
    cache: str | None = None,
    calibration: str | Path | None = None,
    adapters: Sequence[str | Path] | Mapping[str, str | Path] = (),
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
            "hf:org/model" and "hf:org/model:file.gguf" are models of the Hugging Face Hub.
        target: a name of `tensorwright targets`, or a `targets.Target`; "host" is this machine's processor.
        shapes: sizes of inputs by name; an int fixes a dimension, a string keeps it symbolic, and equal strings are
            equal sizes: `{"input_ids": ("batch", 64)}`.
        sizes: of dynamic dimensions, those that get code of their own beside the code for every size: by dimension
            (`{"batch": [1, 8]}`, each combination of several), or whole shapes by input
            (`{"x": [(1, 3, 224, 224), (8, 3, 224, 224)]}`). All share the weights.
        processing: what is compiled into the module before and behind the net, so that it takes an image of any size
            (uint8, height x width x 3) and returns boxes or classes, as `Module.predict` uses them: a
            `tensorwright.Processing`, whose fields that are None are found in the model's metadata; "auto" finds all
            there (of ultralytics' ONNX files, or preprocessor_config.json and config.json beside the model).
        constants: values of inputs that are fixed now; they are no longer inputs of the module.
        example_inputs: positional arguments of a `torch.nn.Module`, or a dictionary of keyword arguments.
        dynamic_shapes: which dimensions of them stay symbolic, as `torch.export.export` takes it.
        outputs: names of those to return, in this order (of an ONNX model any value of its main graph); all when None.
            What nothing else needs is not compiled.
        state: what a session keeps (`Module.session`): of an ONNX model, the output that is the next value of an input,
            where `*` stands for the same text in both: `{"past_key_values.*": "present.*"}`; None: pairs of the usual
            names; {}: none. Of a PyTorch model, inputs that it writes to (["*"]: all of them); buffers that it writes
            to always are states. Of both, pairs whose output is the input with rows appended to it grow from run to
            run.
        capacity: how many rows states that grow have room for; such a state is a buffer then, and a run writes its new
            rows alone. A name makes it a symbolic dimension that `Module.session(capacity=...)` chooses. None: each
            run returns a longer tensor.
        precision: "float32", "bf16" or "float16" (or "fp32", "bfloat16", "fp16", ...). "bf16" rounds the operands of
            convolutions and of products with constant weights to bfloat16 (sums stay float32), and stores what lies
            between convolutions so; it needs a target with a bfloat16 dot product. Depthwise convolutions and attention
            compute in float32. "float16" is the same with float16, for graphics processors and those with AMX-FP16 or
            AVX-512 FP16 (which sum up to 64 products in float16): what lies beyond 65504 becomes infinite. None is
            "float32", and "float16" of models that are in float16 where the processor has AMX-FP16. Of a language model
            it says what weights are stored as, "int8" and "int4" among them; None keeps what the file has.
        sequences: build a language model so that a run reads tokens of several sequences, for
            `tensorwright.generation.Scheduler` and for speculative decoding.
        cache: the type of the keys and values that a language model keeps: "float32", "float16", "bfloat16" or "int8",
            which has a scale for each head and row; None for float32 beside float32 weights and float16 beside others.
        calibration: a text file; the weights of a language model with `precision="int4"` are rounded so that its
            products change least on the first 4,096 tokens of the text (GPTQ).
        adapters: folders of LoRA adapters as peft saves them, merged into the weights of a language model one after
            another; or {name: folder} of those that are kept beside the weights, one of which each session or request
            chooses by its name.
        threads: number of threads that the module runs on; the target's cores when None.
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
    named = hub_model(source)
    if named is not None:
        source = download(named)
    stated = None
    if processing is not None:
        from compiler.driver.processing_metadata import stated_processing  # loads onnx

        stated = stated_processing(source, processing)
    name = None if named is None else named.name
    options = options_of(CompileOptions, {**locals(), "processing": stated})

    def build() -> module_cache.Built:
        from compiler.driver.build import build_module  # loads TVM, which a module out of the cache does not need

        return build_module(source, target, options, imports)

    key = module_cache.key_of_call(source, target, options, imports)
    built = build() if key is None else module_cache.reused(key, build, options.report)
    for note in built.notes:
        if is_silent(progress):
            warnings.warn(note, stacklevel=2)
        options.report(note)
    return built.module
