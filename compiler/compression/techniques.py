"""The techniques that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.compression.distillation import DistillationOptions, distill
from compiler.compression.low_rank.driver import FactorizationOptions, factorize
from compiler.compression.pruning import prune
from compiler.compression.pruning.settings import PruningOptions
from compiler.compression.quantization import quantize
from compiler.compression.quantization.settings import QuantizationOptions
from compiler.compression.weight_sharing import check_bits, share_weights
from compiler.errors import OptionError
from compiler.passes.registry import did_you_mean
from compiler.support.options import options_of

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Technique:
    """A step of a recipe.

    Attributes:
        run: given a model and keyword arguments, a compressed model with a report.
        check: raises OptionError for arguments of `run`, all of them by name, that it cannot do whatever the model is;
            what has no default is None where it was not given.
    """

    run: Callable[..., Any]
    check: Callable[[Settings], None]


def _check_prune(settings: Settings) -> None:
    samples, evaluate = settings["calibration"], settings["evaluate"]
    options_of(PruningOptions, settings).check(has_samples=samples is not None, has_measure=evaluate is not None)


def _check_quantize(settings: Settings) -> None:
    options_of(QuantizationOptions, settings).check(settings["target"], settings["calibration"] is not None)


TECHNIQUES = {
    "distill": Technique(distill, lambda settings: options_of(DistillationOptions, settings).check()),
    "factorize": Technique(factorize, lambda settings: options_of(FactorizationOptions, settings).check()),
    "prune": Technique(prune, _check_prune),
    "quantize": Technique(quantize, _check_quantize),
    "share-weights": Technique(share_weights, lambda settings: check_bits(settings["bits"])),
}


def get_technique(name: str) -> Technique:
    """Raises OptionError with near names."""
    if name not in TECHNIQUES:
        raise OptionError(f"no technique is named {name!r}", did_you_mean(name, TECHNIQUES))
    return TECHNIQUES[name]
