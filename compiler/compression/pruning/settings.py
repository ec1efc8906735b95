"""The settings of `prune`, checked before anything runs."""

from __future__ import annotations

from compiler.compression.pruning.patterns import STRUCTURES, parse_pattern
from compiler.compression.pruning.plan import CRITERIA
from compiler.compression.pruning.selection import SCOPES
from compiler.compression.quantization.accuracy import check_max_drop
from compiler.errors import OptionError


def check_settings(
    amount: float | None,
    pattern: str,
    criterion: str,
    scope: str,
    steps: int,
    finetune: object,
    loss: object,
    rewind: object,
    calibration: object,
    evaluate: object,
    max_drop: float,
) -> None:
    """Raises OptionError for what `prune` cannot do, whatever the model."""
    trains = any(each is not None for each in (finetune, loss, rewind))
    check_max_drop(max_drop)
    _check_amount(amount, trains, calibration is not None or evaluate is not None)
    if pattern not in STRUCTURES:
        parse_pattern(pattern)
    if criterion not in CRITERIA:
        raise OptionError(f"criterion={criterion!r}", f"use one of {', '.join(CRITERIA)}")
    if scope not in SCOPES:
        raise OptionError(f"scope={scope!r}", f"use one of {', '.join(SCOPES)}")
    if steps < 1:
        raise OptionError(f"steps={steps}: pruning takes at least one step")
    if steps > 1 and not trains:
        raise OptionError("steps= is for pruning with finetune=", "without training one step does the same")
    if pattern == "layers":
        _check_layers(criterion, trains, calibration is not None)
    else:
        _check_criterion(criterion, trains, loss is not None, calibration is not None)


def _check_amount(amount: float | None, trains: bool, measured: bool) -> None:
    if amount is None and trains:
        raise OptionError("amount=None searches without training", "give the amount when there is finetune=")
    if amount is None and not measured:
        raise OptionError("amount=None needs a measure", "give evaluate= or calibration=")
    if amount is not None and not 0 < amount < 1:
        raise OptionError(f"amount={amount}", "give a share between 0 and 1, like 0.5")


def _check_layers(criterion: str, trains: bool, has_samples: bool) -> None:
    """What holds of the pattern "layers" alone."""
    if criterion not in ("magnitude", "influence"):
        raise OptionError(f"criterion={criterion!r} does not rank layers", "use 'magnitude' or 'influence'")
    if criterion == "influence" and not has_samples:
        raise OptionError("criterion='influence' needs calibration=", "a few inputs as the model will meet them")
    if trains:
        raise OptionError("layers are taken from the graph, not from a module in training", "leave out finetune=")


def _check_criterion(criterion: str, trains: bool, has_loss: bool, has_samples: bool) -> None:
    """What holds of the other patterns."""
    if criterion == "influence":
        raise OptionError("criterion='influence' is for pattern='layers'", f"use one of {', '.join(CRITERIA[:3])}")
    if criterion == "gradient" and not has_loss:
        raise OptionError("criterion='gradient' needs loss=", "loss=lambda net: cross_entropy(net(images), labels)")
    if criterion == "second-order" and not has_loss and (trains or not has_samples):
        raise OptionError("criterion='second-order' needs loss= of a torch.nn.Module, or calibration= without training")
