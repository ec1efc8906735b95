"""Once-for-all training: the largest net, the smallest and two random ones share each batch (the sandwich rule, Yu and
Huang 2019), and all but the largest learn from its outputs (in-place distillation).

A sub-net is then trained separately, with masks; finally it becomes a smaller graph. Weights are stored in files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from compiler.artifact.storage import write_atomically
from compiler.compression.distillation import DistillationOptions, Scheduled, response, train_student
from compiler.compression.job import Job
from compiler.compression.pruning.training import Pruned, translated
from compiler.errors import InputError, OptionError, StorageError
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.rewriting.matching import Array
from compiler.searching.choice import materialized, select
from compiler.searching.eager import computed, has_batch_norm, recalibrated, scaled, silence
from compiler.searching.graph import reduced
from compiler.searching.knobs import Config, largest, sampled, smallest
from compiler.searching.settings import SearchOptions
from compiler.searching.torch_net import Skeleton, TorchNet, copied, on_threads, seeded

_RANDOM = 2
_TEMPERATURE = 1.0


def train_shared(work: TorchNet, options: SearchOptions, report: Callable[[str], None]) -> None:
    """Train the net's weights for all of its sub-nets. Raises InputError or OptionError if the batches are invalid, or
    the loss is not finite."""
    random = Random(options.seed)
    knobs = [knob for knob in work.knobs if knob.kind != "precision"]
    shapes = work.shapes(random)
    optimizer = torch.optim.Adam(work.net.parameters(), options.learning_rate)
    assert options.batches is not None
    batches, rate = shuffled(options.batches, random), Scheduled("one-cycle", options.epochs)
    with seeded(options.seed), on_threads(work.job.threads):
        for epoch in range(options.epochs):
            report(f"train the shared weights: epoch {epoch + 1} of {options.epochs}")
            work.net.train()
            for progress, batch in rate.batches(batches, epoch):
                inputs, labels = pair_of(batch)
                rate.apply(optimizer, progress)
                optimizer.zero_grad()
                teacher_outputs = _largest(work, largest(knobs), inputs, labels, options)
                drawn = [{**sampled(knobs, random), **next(shapes)} for _ in range(_RANDOM)]
                others: list[Config] = [smallest(knobs), *drawn]
                for config in others:
                    select(work.net, config)
                    outputs = computed(work.net, work.sub_net(config), inputs)
                    response(outputs, teacher_outputs, _TEMPERATURE).backward()
                optimizer.step()
    work.net.eval()


def _largest(work: TorchNet, config: Config, inputs: list[Any], labels: Any, options: SearchOptions) -> Any:
    """Train the largest net on the task; return its outputs, without gradients."""
    if labels is None:
        raise InputError("batches= has no labels", "give pairs (inputs, labels): the shared weights learn from them")
    select(work.net, config)
    outputs = computed(work.net, work.sub_net(config), inputs)
    task = options.task or torch.nn.functional.cross_entropy
    loss = task(outputs, labels)
    if not torch.isfinite(loss):
        raise OptionError(f"the loss is {float(loss)} in training", "give a smaller learning_rate=")
    loss.backward()
    return outputs.detach()


class Shuffled:
    """Batches in a different order each time; sources without indices, like a `DataLoader`, keep their order."""

    def __init__(self, batches: Sequence[Any], random: Random) -> None:
        self._batches, self._random = batches, random

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._random.sample(self._batches, len(self._batches)))


def shuffled(batches: Iterable[Any], random: Random) -> Iterable[Any]:
    """Batches of a list in a different order each epoch; a loader determines its own order."""
    return Shuffled(batches, random) if isinstance(batches, list | tuple) else batches


def pairs_of(batches: Iterable[Any] | None) -> Iterator[tuple[list[Any], Any]]:
    """(inputs, labels) of each batch. Raises InputError if there are none."""
    count = 0
    for batch in batches or ():
        count += 1
        yield pair_of(batch)
    if not count:
        raise InputError("batches= holds no batch")


def pair_of(batch: Any) -> tuple[list[Any], Any]:
    """(inputs, labels) of a batch; labels are None if it has none."""
    inputs, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
    return (list(inputs) if isinstance(inputs, tuple | list) else [inputs]), labels


def shared_weights(work: TorchNet, options: SearchOptions, report: Callable[[str], None]) -> None:
    """Train the shared weights, or load those trained by an earlier run of the same search."""
    path = None if options.storage is None else Path(f"{os.fspath(options.storage)}.weights.safetensors")
    if path is not None and path.exists():
        read_weights(work.net, path)
        return
    train_shared(work, options, report)
    if path is not None:
        write_weights(work.net, path)


def inputs_for_statistics(batches: Iterable[Any] | None, job: Job, most: int) -> list[list[Any]]:
    """Inputs for batch norm statistics of sub-nets: of a limited number of batches, otherwise the calibration."""
    if batches is not None:
        return [inputs for inputs, _ in islice(pairs_of(batches), most)]
    names = [spec.name for spec in job.model.inputs]
    return [[torch.as_tensor(sample[name]) for name in names] for sample in job.samples]


def samples_of(batches: Iterable[Any], specs: Sequence[TensorSpec], most: int) -> list[dict[str, Array]]:
    """Rows of the batches as samples of a model with these inputs, whose first axis is the batch."""
    rows = int(specs[0].shape[0]) if specs and specs[0].shape else 1
    samples: list[dict[str, Array]] = []
    for inputs, _ in pairs_of(batches):
        arrays = [np.asarray(each) for each in inputs]
        for start in range(0, len(arrays[0]) - rows + 1, rows):
            samples.append({spec.name: array[start : start + rows] for spec, array in zip(specs, arrays, strict=True)})
            if len(samples) == most:
                return samples
    return samples


def write_weights(net: torch.nn.Module, path: Path) -> None:
    """Write a net's weights. A tensor with several names is written once for each. Raises StorageError."""
    contents = save({name: each.detach().cpu().clone().contiguous() for name, each in net.state_dict().items()})
    write_atomically(path, [contents])


def read_weights(net: torch.nn.Module, path: Path) -> None:
    """Load a net's weights. Raises StorageError if the file is damaged, or belongs to another net."""
    like = net.state_dict()
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} holds no weights: {error}", "remove it: they are trained anew") from error
    if {name: each.shape for name, each in weights.items()} != {name: each.shape for name, each in like.items()}:
        raise StorageError(f"{path} holds the weights of another net", "remove it, or name another storage=")
    net.load_state_dict(weights)


def digest_of(net: torch.nn.Module) -> str:
    """Digest of all tensors of a net, with their names."""
    digest = hashlib.sha256()
    for name, each in sorted(net.state_dict().items()):
        digest.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
        digest.update(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class SubNetwork(Pruned):
    """A copy of the net that computes and trains as one of its sub-nets. `owner`: the net that it was derived from,
    with the graph's skeleton."""

    owner: TorchNet
    skeleton: Skeleton
    config: Config
    _structure: list[Any]

    @classmethod
    def of(cls, owner: TorchNet, config: Config) -> SubNetwork:
        """The sub-net of a config, with the shared weights."""
        skeleton = owner.skeleton(config)
        net = copied(materialized(owner.net, config)).eval()
        tagged = skeleton.tagged
        work = cls(net, tagged.imports, tagged.found, tagged.positions)
        work.owner, work.skeleton, work.config, work._structure = owner, skeleton, dict(config), []
        work.removed = skeleton.removed_in_tagged(config)
        work.mask_parameters(skeleton.masks(config))
        batches = owner.batches
        if batches and has_batch_norm(net):
            buffers = recalibrated(net, owner.sub_net(config), batches)
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(buffers[name])
        work._compute_as_sub_net()
        return work

    def _compute_as_sub_net(self) -> None:
        """Install hooks that leave layers out and scale images, for functions that train the net."""
        sub = self.owner.sub_net(self.config)
        self._structure = silence(self.net, sub.silent)
        if sub.scale is not None:
            size = sub.scale
            hook = self.net.register_forward_pre_hook(lambda _net, inputs: tuple(scaled(inputs, size)))
            self._structure.append(hook)

    def distill(self, teacher: Any, options: SearchOptions, epochs: int, report: Callable[[str], None]) -> None:
        """Distill from the original net. Raises OptionError and InputError."""
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
        """The graph of the whole net, without hooks."""
        for handle in self._structure:
            handle.remove()
        try:
            return super().imported()
        finally:
            self._compute_as_sub_net()

    def compressed(self) -> ImportedModel:
        """The smaller graph with the net's current weights."""
        model = self.imported()
        assert self.removed is not None
        found, removed = translated(self.removed, self.found, model.mod)
        return self.owner.whole(reduced(model, found, removed, self.config), self.skeleton)
