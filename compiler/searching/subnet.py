"""A sub-net of a torch net in training of its own, by masks; it becomes a smaller graph in the end."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch

from compiler.compression.distillation import DistillationOptions, train_student
from compiler.compression.pruning.training import Pruned, translated
from compiler.frontends.imported_model import ImportedModel
from compiler.searching.choice import materialized
from compiler.searching.eager import has_batch_norm, recalibrated, scaled, silence
from compiler.searching.graph import reduced
from compiler.searching.knobs import Config
from compiler.searching.settings import SearchOptions
from compiler.searching.supernet import shuffled
from compiler.searching.torch_net import Skeleton, TorchNet, copied, seeded


class SubNetwork(Pruned):
    """A copy of the net that computes and trains as one of its sub-nets.

    Attributes:
        owner: the net that it was taken from, with the graph's skeleton.
    """

    owner: TorchNet
    skeleton: Skeleton
    config: Config
    _structure: list[Any]

    @classmethod
    def of(cls, owner: TorchNet, config: Config) -> SubNetwork:
        """The sub-net of a config, with the weights that are shared."""
        skeleton = owner.skeleton(config)
        net = copied(materialized(owner.net, config)).eval()
        tagged = skeleton.tagged
        work = cls(net, tagged.imports, tagged.found, tagged.places)
        work.owner, work.skeleton, work.config, work._structure = owner, skeleton, dict(config), []
        work.removed = skeleton.removed_in_tagged(config)
        work.mask_parameters(skeleton.masks(config))
        batches = owner.batches
        if batches and has_batch_norm(net):
            own = recalibrated(net, owner.sub_net(config), batches)
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(own[name])
        work._compute_as_sub_net()
        return work

    def _compute_as_sub_net(self) -> None:
        """Hooks that leave layers out and scale images, for whoever trains the net."""
        sub = self.owner.sub_net(self.config)
        self._structure = silence(self.net, sub.silent)
        if sub.scale is not None:
            size = sub.scale
            hook = self.net.register_forward_pre_hook(lambda _net, inputs: tuple(scaled(inputs, size)))
            self._structure.append(hook)

    def distill(self, teacher: Any, options: SearchOptions, epochs: int, report: Callable[[str], None]) -> None:
        """Let the net as it came teach it. Raises OptionError and InputError."""
        assert options.batches is not None
        settings = DistillationOptions(
            teacher=teacher,
            batches=shuffled(options.batches, Random(options.seed)),
            task=options.task,
            epochs=epochs,
            learning_rate=options.learning_rate,
            schedule="one-cycle",
        )
        with seeded(options.seed):
            train_student(self.net, settings, report)
        self.apply()

    def imported(self) -> ImportedModel:
        """The graph of the whole net, hooks aside."""
        for handle in self._structure:
            handle.remove()
        try:
            return super().imported()
        finally:
            self._compute_as_sub_net()

    def compressed(self) -> ImportedModel:
        """The smaller graph as the net now is."""
        model = self.imported()
        assert self.removed is not None
        found, removed = translated(self.removed, self.found, model.mod)
        return self.owner.whole(reduced(model, found, removed, self.config), self.skeleton)
