"""The settings of `prune`, checked before anything runs, and the report's notes on zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import targets
from compiler.compression.pruning.plan import CRITERIA, SCOPES, STRUCTURES, Plan, parse_pattern
from compiler.compression.report import Measure
from compiler.errors import OptionError
from compiler.passes.layout.pack_weights import pack_sparse_weights
from compiler.support.options import check_choices
from schedules.conv.sparse import CONV_SPARSE
from schedules.instructions.select_lanes import choices_of
from schedules.matmul.sparse import MATMUL_N_OF_M, MATMUL_SPARSE, share_that_pays

Finetune = Callable[[Any], object]
Loss = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """Options of `prune`, which documents the fields."""

    amount: float | None = 0.5
    pattern: str = "channels"
    criterion: str = "magnitude"
    scope: str = "layer"
    steps: int = 1
    finetune: Finetune | None = None
    loss: Loss | None = None
    rewind: Mapping[str, Any] | None = None

    @property
    def trains(self) -> bool:
        """True if a module is trained while it is pruned."""
        return any(each is not None for each in (self.finetune, self.loss, self.rewind))

    def plan(self) -> Plan:
        """The plan, shared by graphs and modules in training."""
        kind = None if self.pattern in STRUCTURES else parse_pattern(self.pattern)
        return Plan(self.pattern, kind, self.criterion, self.scope, self.steps)

    def check(self, *, has_samples: bool, has_measure: bool) -> None:
        """Raise OptionError for options that are invalid for every model.

        Args:
            has_samples: there is a calibration.
            has_measure: the caller gave `evaluate`.
        """
        _check_amount(self.amount, self.trains, has_samples or has_measure)
        if self.pattern not in STRUCTURES:
            parse_pattern(self.pattern)
        check_choices(self, criterion=CRITERIA, scope=SCOPES)
        if self.steps < 1:
            raise OptionError(f"steps={self.steps}: pruning needs at least one step")
        if self.steps > 1 and not self.trains:
            raise OptionError("steps > 1 needs finetune=", "without training one step does the same")
        if self.pattern == "layers":
            _check_layers(self.criterion, self.trains, has_samples)
        else:
            _check_criterion(self.criterion, self.trains, self.loss is not None, has_samples)


def _check_amount(amount: float | None, trains: bool, measured: bool) -> None:
    if amount is None and trains:
        raise OptionError("amount=None searches without training", "give the amount when there is finetune=")
    if amount is None and not measured:
        raise OptionError("amount=None needs a measure", "give evaluate= or calibration=")
    if amount is not None and not 0 < amount < 1:
        raise OptionError(f"amount={amount}", "give a share between 0 and 1, like 0.5")


def _check_layers(criterion: str, trains: bool, has_samples: bool) -> None:
    """Check options of the pattern "layers"."""
    if criterion not in ("magnitude", "influence"):
        raise OptionError(f"criterion={criterion!r} does not rank layers", "use 'magnitude' or 'influence'")
    if criterion == "influence" and not has_samples:
        raise OptionError("criterion='influence' needs calibration=", "a few representative inputs")
    if trains:
        raise OptionError("layers are taken from the graph, not from a module in training", "leave out finetune=")


def _check_criterion(criterion: str, trains: bool, has_loss: bool, has_samples: bool) -> None:
    """Check options of the other patterns."""
    if criterion == "influence":
        raise OptionError("criterion='influence' is for pattern='layers'", f"use one of {', '.join(CRITERIA[:3])}")
    if criterion == "gradient" and not has_loss:
        raise OptionError("criterion='gradient' needs loss=", "loss=lambda net: cross_entropy(net(images), labels)")
    if criterion == "second-order" and not has_loss and (trains or not has_samples):
        raise OptionError("criterion='second-order' needs loss= of a torch.nn.Module, or calibration= without training")


def note_on_zeros(after: Measure, target: targets.Target) -> str:
    """Note on which kernels skip zeros, and from which fraction of zeros on they would."""
    if not pack_sparse_weights.serves(target.pipeline):
        return "this target's kernels read and multiply zeros like other weights: no faster"
    machine = target.machine
    skipping = sum(after.kernels.get(rule, 0) for rule in (CONV_SPARSE, MATMUL_SPARSE, MATMUL_N_OF_M))
    lanes = machine.lanes("float32")
    share = share_that_pays(machine, 0)
    served = f"{skipping} kernels skip zeros" if skipping else "no kernel skips zeros"
    groups = ", in N of 4 where N is 1 or there are few rows" if choices_of(machine) else ""
    return (
        f"{served}; dense ones, no faster for zeros, serve all other weights: on this machine zeros pay in blocks of"
        f" {lanes}x1 from {share:.0%} on{groups}, and in 3x3 convolutions by Winograd's method from much more on"
    )
