"""`tensorwright quantize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import compiler
from compiler.cli import options
from compiler.cli.options import command_of, flag, option

HELP = """Quantize a model and compile it.

Schemes: static-int8 (needs samples), dynamic-int8 (activations are quantized at run time), weight-int4 and weight-int8
(only the weights of matmuls), float16 and bfloat16 (weights stored in 16 bits). int8 stands for static-int8,
int4 and q4 for weight-int4, fp16 for float16, bf16 for bfloat16.

The samples should be typical inputs of the model. The mean cosine similarity of the outputs with those of the float
model is measured; the most sensitive layers go back to float until the limit holds, and it is an error if it cannot.
For your own metric use tensorwright.quantize(model, samples, evaluate=...).

[bold]Typical[/]

  tensorwright quantize model.onnx --samples a.npz --samples b.npz -o model.twm

[bold]Examples[/]

  A tighter limit, and a report of every layer:
    tensorwright quantize model.onnx --samples a.npz --max-drop 0.001 --report report.html

  The weights of a language model in 4 bits, one scale per 32 weights:
    tensorwright quantize model.onnx --scheme weight-int4 --group 32 --samples a.npz

  Another method of choosing ranges:
    tensorwright quantize model.onnx --samples a.npz --method percentile

  Layers timed on this machine, and the same decision repeated:
    tensorwright quantize model.onnx --samples a.npz --decide measured --precisions layers.json
    tensorwright quantize model.onnx --samples a.npz --decide layers.json
"""


@dataclass(frozen=True, kw_only=True)
class _Options(options.CompressionOptions):
    scheme: str = option("Quantization scheme; see above.", "NAME", default="static-int8")
    group: int = option("Weight-only schemes: number of weights per scale, 16 to 256.", "COUNT", default=64)
    method: str = option("Method of choosing ranges: min-max, percentile, entropy or mse.", "NAME", default="mse")
    decide: str = option(
        "How to find layers that are faster in float: predicted, measured, or a file of --precisions.",
        "HOW",
        default="predicted",
    )
    keep_slower: bool = flag("Keep layers quantized even if they are slower, to reduce the size.", "--keep-slower")
    precisions: Path | None = option("Write the list of quantized layers to this file (.json).", "FILE")


@command_of
def command(given: _Options) -> None:
    from compiler.cli.compression import compress_to_file

    compress_to_file(compiler.quantize, given, given.precisions)
