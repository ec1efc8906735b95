"""`prune` in a recipe."""

from collections.abc import Mapping

from compiler.compression.pruning import prune
from compiler.compression.pruning.settings import PruningOptions
from compiler.compression.techniques.registry import register
from compiler.support.options import options_of


def _check(settings: Mapping[str, object]) -> None:
    samples, evaluate = settings["calibration"], settings["evaluate"]
    options_of(PruningOptions, settings).check(has_samples=samples is not None, has_measure=evaluate is not None)


register("prune", prune, _check)
