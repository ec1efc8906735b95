"""`tensorwright compile`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import compiler
from compiler.cli import options
from compiler.cli.arguments import parse_adapters, parse_imports, parse_passes, parse_sizes
from compiler.cli.options import command_of, flag, keywords_of, option
from compiler.cli.output import message_console, print_facts, print_json, print_line
from compiler.cli.processing_options import parse_processing, processing_parameters
from compiler.cli.progress import Steps
from compiler.cli.repeated import Facts, default_output
from compiler.reports.formatting import format_bytes, format_count, format_seconds, plural

HELP = """Compile a model into a module that runs without the compiler.

[bold]Typical[/]

  tensorwright compile model.onnx -o model.twm

[bold]Examples[/]

  Keep the batch dynamic, fix the sequence length:
    tensorwright compile bert.onnx --shape input_ids=batch,128 --shape attention_mask=batch,128

  Any batch, and the fastest code for one and eight images:
    tensorwright compile resnet.onnx --shape input=batch,3,224,224 --sizes batch=1,8

  Fix an input for good, and build for another processor:
    tensorwright compile vad.onnx --constant sr=16000 --target x86-64-v3

  Return one output of several:
    tensorwright compile detector.onnx --outputs boxes

  From a picture to boxes, by the metadata of an ultralytics file; and with your own threshold:
    tensorwright compile yolov8n.onnx --processing && tensorwright run yolov8n.twm street.jpg
    tensorwright compile yolov8n.onnx --score 0.5

  Dump the module after each pass, including your own pass:
    tensorwright compile model.onnx --dump passes --pass after:fold-constants=my_passes.py:simplify

  A language model from a GGUF file or a transformers model folder:
    tensorwright compile SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2.twm && tensorwright chat smollm2.twm

  Sign it; tensorwright.load(path, trusted_keys=[...]) checks the signature:
    tensorwright key new release.pem && tensorwright compile model.onnx --sign release.pem
"""


@dataclass(frozen=True, kw_only=True)
class _Options(options.ImportOptions):
    model: Path = options.MODEL_PATH
    output: Path | None = options.MODULE_OUTPUT
    target: str = options.TARGET
    sizes: list[str] | None = option(
        "Sizes of a dynamic dimension (batch=1,8), or shapes of an input (x=1x3x224x224), that get specialized code "
        "in addition to the code for every size; all share the weights. Repeat for others: each combination.",
        "NAME=SIZES",
    )
    outputs: str | None = option(
        "Return only these outputs, in this order; nodes that only other outputs need are not compiled.", "NAME,NAME"
    )
    precision: str | None = option(
        "Type that float operators compute in (float32 if not given). For a language model: the type of its "
        "weights: float32, bf16, float16, int8 or int4; as in the file if not given.",
        "TYPE",
    )
    sequences: bool = flag(
        "For a language model: read several sequences per run, for servers and speculation.", "--sequences"
    )
    images: bool = flag(
        "For a language model: compile the encoder of images, too, where it would be left out (Qwen3.5, Gemma 4).",
        "--images",
    )
    cache: str | None = option(
        "For a language model: the type of cached keys and values: float32, bf16, float16 or int8; if not "
        "given, float32 with float32 weights and float16 with others.",
        "TYPE",
    )
    calibration: Path | None = option(
        "For a language model with --precision int4: a text; GPTQ minimizes the change of matmul results on its "
        "first 4,096 tokens.",
        "FILE",
    )
    adapter: list[str] | None = option(
        "For a language model: the folder of a LoRA adapter saved by peft, which is merged into the weights; with "
        "a name it is stored separately, for requests that select it. Repeat for others.",
        "[NAME=]DIR",
    )
    threads: int | None = option("Number of threads of a run; all cores if not given.", "N", min=1)
    dump: Path | None = option("Write the module after each pass to this folder, as TVMScript.", "DIR")
    verify: bool = flag("Check the results after each pass, and name the first wrong one. Slow.", "--verify")
    pass_: list[str] | None = option(
        "Insert your own pass before:, after: or instead-of: one of `tensorwright passes`; PASS is "
        "module:function, file.py:function, or none.",
        "WHERE:NAME=PASS",
        "--pass",
    )
    sign: Path | None = option("Sign with this Ed25519 private key (a PEM file).", "KEY")
    passphrase_file: Path | None = options.PASSPHRASE_FILE
    as_json: bool = options.JSON


@partial(command_of, more=processing_parameters())
def command(given: _Options, processing: dict[str, Any]) -> Facts | None:
    from compiler.artifact import KeyKind
    from compiler.cli.passphrases import load_private_key
    from compiler.cli.paths import check_writable
    from compiler.inspection.summary import check_is_not_compiled, coverage_of, summarize
    from compiler.support.hub import download, hub_model

    named = hub_model(given.model)
    model = given.model if named is None else download(named)
    path = given.output or (default_output(model) if named is None else Path(f"{named.name}.twm"))
    check_writable(path)
    key = load_private_key(given.sign, KeyKind.SIGNING, given.passphrase_file) if given.sign is not None else None
    passes = parse_passes(given.pass_ or [])
    imports = parse_imports(model, given)
    imports["outputs"] = given.outputs.split(",") if given.outputs is not None else None
    check_is_not_compiled(model)
    coverage = coverage_of(model) if given.as_json else None
    with Steps() as steps:

        def announce(step: str) -> None:
            # A cached module does not need the model to be imported, and loads in a fraction of a second.
            if step == "import" and not given.as_json and step not in steps.seconds:
                _print_coverage(coverage_of(model))
            steps(step)

        module = compiler.compile(
            given.model,
            processing=parse_processing(processing),
            adapters=parse_adapters(given.adapter or []),
            passes=passes or None,
            **keywords_of(compiler.compile, given, sizes=parse_sizes(given.sizes or []) or None, progress=announce),
            **imports,
        )
        steps("write")
        module.export(path, sign_key=key)
    summary = summarize(module, path, coverage, steps.seconds)
    if given.as_json:
        print_json(summary.to_dict())
        return None
    facts = _facts_of(summary)
    times = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in summary.seconds.items())
    print_facts([*facts, ("time", f"{format_seconds(sum(summary.seconds.values()))} ({times})")])
    print_line()
    print_line(f"wrote {summary.path}, {format_bytes(summary.file_bytes)}")
    return facts


def _print_coverage(coverage: Any) -> None:
    if coverage is None:
        return
    parts = [f"{count} {kind}" for kind, count in coverage.nodes.items() if count or kind == "supported"]
    message_console().print(f"{plural(sum(coverage.nodes.values()), 'operator')}: {', '.join(parts)}", markup=False)
    for line in coverage.rewritten:
        message_console().print(f"  rewritten: {line}", markup=False, soft_wrap=True)


def _facts_of(summary: Any) -> Facts:
    facts = [
        ("inputs", "\n".join(summary.shown_inputs) or "none"),
        ("outputs", "\n".join(summary.shown_outputs) or "none"),
        ("target", summary.target),
        (
            "parameters",
            f"{format_count(summary.parameter_values)} in {plural(summary.parameters, 'tensor')}, "
            f"{format_bytes(summary.parameter_bytes)}",
        ),
        ("kernels", _kernels_text(summary)),
    ]
    if summary.states:
        facts.insert(
            2,
            ("states", f"{len(summary.states)}: {', '.join(summary.states[:4])}{', ...' * (len(summary.states) > 4)}"),
        )
    if summary.accelerator:
        facts.append(("accelerator", summary.accelerator))
    if summary.memory_plan:
        facts.append(("memory plan", summary.memory_plan))
    if summary.precision:
        facts.append(("precision", summary.precision))
    return facts


def _kernels_text(summary: Any) -> str:
    rules = ", ".join(f"{count} {rule}" for rule, count in summary.kernels_by_rule.items())
    return f"{sum(summary.kernels_by_rule.values())}: {rules}" if rules else "none"
