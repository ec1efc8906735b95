"""`compile`: creates a runnable module from a model; a model that was compiled before comes from the cache."""

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
    images: bool = False,
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
            "hf:org/model" and "hf:org/model:file.gguf" refer to models on the Hugging Face Hub.
        target: a name listed by `tensorwright targets`, or a `targets.Target`; "host" is this machine's processor.
        shapes: input sizes by name; an int fixes a dimension, a string keeps it symbolic, and equal strings are equal
            sizes: `{"input_ids": ("batch", 64)}`.
        sizes: sizes of dynamic dimensions that get specialized code in addition to the code for every size: by
            dimension (`{"batch": [1, 8]}`, all combinations if there are several), or whole shapes by input (`{"x":
            [(1, 3, 224, 224), (8, 3, 224, 224)]}`). All variants share the weights.
        processing: the preprocessing and postprocessing to compile into the module, so that it takes an image of any
            size (uint8, height x width x 3) and returns boxes or classes, as `Module.predict` uses them: a
            `tensorwright.Processing`, whose None fields are taken from the model's metadata; "auto" takes all of them
            from there (from ultralytics' ONNX files, or preprocessor_config.json and config.json next to the model).
        constants: values of inputs to fix at compile time; they are no longer inputs of the module.
        example_inputs: positional arguments of a `torch.nn.Module`, or a dictionary of keyword arguments.
        dynamic_shapes: which dimensions of the example inputs stay symbolic, in the form of `torch.export.export`.
        outputs: names of the outputs to return, in this order (any value of the main graph of an ONNX model); all when
            None. Operators that none of these outputs need are not compiled.
        state: the states that a session keeps (`Module.session`). For an ONNX model, the output that is the next value
            of an input, where `*` stands for the same text in both: `{"past_key_values.*": "present.*"}`; None: pairs
            with the usual names; {}: none. For a PyTorch model, inputs that it writes to (["*"]: all of them); buffers
            that it writes to are always states. For both, pairs whose output is the input with appended rows grow with
            each run.
        capacity: the number of rows to reserve for growing states; such a state is then a buffer to which a run writes
            only its new rows. A name makes the capacity a symbolic dimension that `Module.session(capacity=...)`
            chooses. None: each run returns a longer tensor.
        precision: "float32", "bf16" or "float16" (or "fp32", "bfloat16", "fp16", ...). "bf16" rounds the operands of
            convolutions and of products with constant weights to bfloat16 (sums stay float32), and stores intermediate
            values between convolutions in bfloat16; it needs a target with a bfloat16 dot product. Depthwise
            convolutions and attention compute in float32. "float16" is the same with float16, for GPUs and
            processors with AMX-FP16 or AVX-512 FP16 (which sum up to 64 products in float16): values beyond 65504
            become infinite. None is "float32", except that it is "float16" for float16 models if the processor has
            AMX-FP16. For a language model, it is the storage type of the weights, with the additional values "int8"
            and "int4"; None keeps the types of the file.
        sequences: compile a language model so that a run reads tokens of several sequences, for
            `tensorwright.generation.Scheduler` and for speculative decoding.
        images: compile the encoder of images of a language model, too; it is otherwise left out where the text part
            alone is compiled without PyTorch (Gemma 4, Qwen3.5, Mistral 3, LFM2-VL, LLaVA-NeXT and others).
        cache: the type of a language model's cached keys and values: "float32", "float16", "bfloat16" or "int8", which
            has a scale for each head and row; None is float32 with float32 weights and float16 with others.
        calibration: a text file; the weights of a language model with `precision="int4"` are rounded so that its
            products change least on the first 4,096 tokens of the text (GPTQ).
        adapters: folders of LoRA adapters as saved by peft, merged into the weights of a language model one after
            another; or {name: folder} for adapters kept separate from the weights, one of which each session or request
            chooses by name.
        threads: number of threads that the module runs on; the target's number of cores when None.
        passes: the user's own graph passes: `{"after:fold-constants": my_pass}`; see `tensorwright passes`.
        dump: a folder to which the module is written as TVMScript after each pass.
        verify: compare the module after each pass with the unoptimized one, on `reference_inputs` if given; slow, for
            finding defects.
        reference_inputs: the reference inputs to store; random values when None.
        records: tuning records: None for those included in the package and the user's own (written by `tune`), False
            for none; or one or more files or folders that replace the user's own.
        progress: called with the name of each step as it begins; by default a progress bar in terminals and notebooks,
            and None for no output.

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
        from compiler.driver.build import build_module  # loads TVM, which a module from the cache does not need

        return build_module(source, target, options, imports)

    key = module_cache.key_of_call(source, target, options, imports)
    built = build() if key is None else module_cache.reused(key, build, options.report)
    for note in built.notes:
        if is_silent(progress):
            warnings.warn(note, stacklevel=2)
        options.report(note)
    return built.module
