"""The artifact suite: damaged and hostile module files are refused, or load and run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact import TensorDescription
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import ArtifactError, TensorwrightError
from compiler.runtime import Module, load
from tests.fuzz.artifact_mutations import STRUCTURE_MUTATIONS, Parts, pick
from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.device_mutations import FORMAT_MUTATIONS
from tests.fuzz.outcome import Outcome

Random = np.random.Generator
_MAX_RUN_ELEMENTS = 1 << 20
_MAX_RUN_THREADS = 8


@dataclass(frozen=True)
class Samples:
    """Valid module files to mutate, and a key that signed some of them."""

    files: tuple[bytes, ...]
    public_key: bytes


def prepare(folder: Path) -> Samples:
    """Build the samples: dynamic and static shapes, several element types, with and without signature."""
    from compiler.artifact import artifact_bytes, generate_keys
    from tests.compiler.runtime.building import dense_artifact, elementwise_artifact, pair_artifact
    from tests.fuzz.artifact_samples import compiled_artifact, language_artifact, mixed_artifact

    keys = generate_keys()
    artifacts = [dense_artifact(), pair_artifact(), elementwise_artifact("bfloat16"), mixed_artifact()]
    artifacts += [compiled_artifact(), language_artifact()]
    plain = [artifact_bytes(artifact) for artifact in artifacts]
    signed = [artifact_bytes(artifact, keys.private) for artifact in artifacts[:2]]
    return Samples((*plain, *signed), keys.public)


def case(samples: Samples, seed: int) -> Outcome:
    """Mutate one sample, then load, verify and run it."""
    random = np.random.default_rng(seed)
    content = samples.files[int(random.integers(len(samples.files)))]
    if random.random() < 0.4:
        return _damaged(content, samples, random)
    mutation = pick((*STRUCTURE_MUTATIONS, *FORMAT_MUTATIONS), random)
    parts = Parts.of(content)
    mutation(parts, random)
    label = mutation.__name__
    try:
        changed = parts.assemble()
        module = load(changed, trusted_keys=[samples.public_key] if random.random() < 0.1 else None)
        if module.manifest.reference_outputs and random.random() < 0.5:
            module.verify()
        _run(module, random)
    except TensorwrightError as error:
        return Outcome("refused", label, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    return Outcome("right", label)


def _damaged(content: bytes, samples: Samples, random: Random) -> Outcome:
    """Randomly changed bytes: only the original bytes may be accepted."""
    donor = samples.files[int(random.integers(len(samples.files)))]
    mutation = BYTE_MUTATIONS[int(random.integers(len(BYTE_MUTATIONS)))]
    if random.random() < 0.2:
        label, at, other = "splice", int(random.integers(len(content))), int(random.integers(len(donor)))
        changed = content[:at] + donor[other:]
    else:
        label, changed = mutation.__name__, mutation(content, random)
    try:
        load(changed)
    except ArtifactError as error:
        return Outcome("refused", label, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    if changed in samples.files:
        return Outcome("right", label)
    return Outcome("wrong", label, "a damaged file was accepted")


def _run(module: Module, random: Random) -> None:
    """Run with inputs as in the manifest, unless they are too large."""
    sizes: dict[str, int] = {}
    values = [_value(description, sizes, random) for description in module.inputs]
    if any(value is None for value in values) or module.threads > _MAX_RUN_THREADS:
        return
    module.run(values)


def _value(description: TensorDescription, sizes: dict[str, int], random: Random) -> Any:
    shape = tuple(
        size if isinstance(size, int) else sizes.setdefault(size, int(random.integers(0, 5)))
        for size in description.shape
    )
    if int(np.prod(shape, dtype=np.float64)) > _MAX_RUN_ELEMENTS:
        return None
    return random.integers(0, 2, shape).astype(ELEMENT_TYPES[description.dtype].numpy)
