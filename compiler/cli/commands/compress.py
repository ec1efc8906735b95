"""`tensorwright compress`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import compiler
from compiler.cli import options
from compiler.cli.options import command_of, option
from compiler.errors import OptionError

HELP = """Compress a model by a recipe of steps and compile it.

The steps are prune, factorize, share-weights and quantize. After each, size, time and the mean cosine similarity
of the outputs on the samples are measured. A step that gains nothing is skipped; it is an error if more accuracy is
lost than --max-drop. Steps that train (distill, fine-tuning) and metrics of your own need Python:
tensorwright.compress(net, recipe, evaluate=...).

[bold]Typical[/]

  tensorwright compress model.onnx --recipe recipe.yaml --samples a.npz -o model.twm

[bold]Examples[/]

  A recipe on one line:
    tensorwright compress model.onnx --recipe "factorize -> quantize" --samples a.npz --report page.html

  A folder of variants for a server, each with its accuracy and cost:
    tensorwright compress model.onnx --variants served/ --samples a.npz --variant int8 --variant small="share-weights"

  One in a file, with settings:
    compress:
      - prune: {pattern: channels, amount: 0.3}
      - share-weights: {bits: 6}
"""


@dataclass(frozen=True, kw_only=True)
class _Options(options.CompressionOptions):
    recipe: str | None = option("A YAML file, or STEP -> STEP.", "RECIPE", "--recipe", "-r")
    variants: Path | None = option("Write a folder of variants for a server instead of one module.", "DIR")
    variant: list[str] | None = option("A variant, or NAME=RECIPE; float32, bf16 and int8 if not given.", "NAME")


@command_of
def command(given: _Options) -> None:
    from compiler.cli.compression import compress_to_file, variants_to_folder

    if (given.recipe is None) == (given.variants is None):
        raise OptionError(
            "give either --recipe or --variants", "--variants DIR --variant small='factorize -> quantize'"
        )
    if given.variants is not None:
        if given.output is not None or given.report is not None:
            raise OptionError("--output and --report are for --recipe", "a folder of variants has its variants.json")
        variants_to_folder(given, given.variants, given.variant, max_drop=given.max_drop)
        return
    compress_to_file(compiler.compress, given)
