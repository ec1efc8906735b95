"""The networks of the table by name: the model to compile, and the inputs to run it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._models import Task, batched, cache_folder, task_of
from benchmarks.catalog import CATALOG
from benchmarks.families.registry import nets as family_nets

_LANGUAGE_MODES = {"decode": 1, "prompt": 128}
_CONTEXT = 512  # tokens in the cache of a language model, those of the run included


@dataclass(frozen=True)
class Net:
    """A network at one size.

    Attributes:
        source, shapes: as `compiler.compile` takes them.
        arrays: an .npz file of its inputs; missing ones are random, with `sizes` of their symbolic dimensions.
        task: the comparison for other runtimes; None if they cannot read the file.
    """

    name: str
    source: Path
    arrays: Path
    shapes: Mapping[str, Any] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    task: Task | None = None

    def fixed(self) -> Net:
        """The network compiled for the static sizes of its inputs."""
        with np.load(self.arrays) as stored:
            shapes = {name: stored[name].shape for name in stored.files}
        return replace(self, name=f"{self.name}, fixed", shapes=shapes)


def net_of(name: str, sizes: Mapping[str, int] | None = None) -> Net:
    """Return a net of the catalog, torchvision or `benchmarks.families`, with the suffix "@16" for a batch of 16; an
    ONNX file; or a GGUF file or folder of a language model, with the suffix ":decode" or ":prompt" ("smollm2" is the
    demo's).

    Args:
        sizes: sizes of symbolic dimensions; by default the last ones in the table of families.

    Raises ValueError for any other name.
    """
    source, colon, mode = name.rpartition(":")
    if colon:
        return _language(name, source, mode)
    plain, _, batch = name.partition("@")
    family = family_nets().get(plain)
    if plain in CATALOG or family is None:
        task = batched(plain, int(batch)) if batch else task_of(plain)
    else:
        own = {**family.sizes[-1], **(sizes or {})}
        task = family.task({**own, "batch": int(batch)} if batch else own)
    return Net(name, task.path, task.arrays, task.shapes, task=task)


def _language(name: str, source: str, mode: str) -> Net:
    if mode not in _LANGUAGE_MODES:
        raise ValueError(f"{name}: say {' or '.join(f'{source}:{each}' for each in _LANGUAGE_MODES)}")
    if source == "smollm2":
        from examples.language import model_path

        source = str(model_path())
    tokens = _LANGUAGE_MODES[mode]
    arrays = cache_folder() / f"cores-{mode}.npz"
    np.savez(arrays, position=np.int64(_CONTEXT - tokens))
    return Net(name, Path(source), arrays, sizes={"n": tokens, "capacity": _CONTEXT})
