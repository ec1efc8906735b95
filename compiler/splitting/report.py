"""Report of `split`: the cuts that were weighed, and the choice."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from compiler.artifact.storage import write_json

Array = np.ndarray


@dataclass(frozen=True)
class Choice:
    """A cut with a wire type.

    Attributes:
        nbytes: on the wire.
        client, transfer, server: seconds.
    """

    position: int
    after: str
    wire: str
    nbytes: int
    client: float
    transfer: float
    server: float

    @property
    def seconds(self) -> float:
        """Altogether."""
        return self.client + self.transfer + self.server

    def __str__(self) -> str:
        return (
            f"{self.seconds * 1e3:9.2f} ms = client {self.client * 1e3:.2f} + wire {self.transfer * 1e3:.2f} + server"
            f" {self.server * 1e3:.2f}  {self.nbytes / 1e3:9.1f} kB {self.wire:8} after {self.after}"
        )


@dataclass(frozen=True)
class Error:
    """Distance of outputs from the whole model's.

    Attributes:
        largest: the largest absolute difference.
        relative: the same as a share of the largest output.
        cosine: the least cosine similarity of an output of a sample.
    """

    largest: float
    relative: float
    cosine: float

    @classmethod
    def of(cls, got: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]]) -> Error:
        """Error of all outputs of all samples."""
        largest, scale, cosine = 0.0, 0.0, 1.0
        for one, other in zip(got, expected, strict=True):
            for name, wanted in other.items():
                a, b = (np.asarray(array, np.float64).ravel() for array in (one[name], wanted))
                if not b.size:
                    continue
                largest, scale = max(largest, float(np.abs(a - b).max())), max(scale, float(np.abs(b).max()))
                norms = float(np.linalg.norm(a) * np.linalg.norm(b))
                cosine = min(cosine, float(a @ b) / norms if norms else float(np.array_equal(a, b)))
        return cls(largest, largest / scale if scale else largest, cosine)


@dataclass(frozen=True)
class SplitReport:
    """Cuts that were weighed, and the choice.

    Attributes:
        crossing: tensors on the wire: name, shape, element type.
        client_alone: seconds of the whole model on the client.
        measured, errors: the finalists with each wire type.
        estimated: the best of all cuts, by estimated times.
        random_inputs: scales and errors are of random inputs, as none were given.
    """

    model: str
    client_target: str
    server_target: str
    bandwidth: float
    latency: float
    chosen: Choice
    crossing: tuple[tuple[str, list[int | str], str], ...]
    error: Error
    max_drop: float
    client_alone: float
    measured: tuple[Choice, ...]
    errors: tuple[Error, ...]
    estimated: tuple[Choice, ...]
    random_inputs: bool

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. Raises StorageError."""
        write_json(path, asdict(self))

    def __str__(self) -> str:
        tensors = ", ".join(f"{name} {dtype}{shape}" for name, shape, dtype in self.crossing)
        lines = [
            f"{self.model}: {self.client_target} -> {self.server_target}, {self.bandwidth / 1e6:g} Mbit/s",
            f"cut after {self.chosen.after!r}; on the wire: {tensors}",
            f"{self.chosen.seconds * 1e3:.2f} ms; the client alone takes {self.client_alone * 1e3:.2f} ms",
            f"difference from the whole model: {self.error.largest:.3g} ({self.error.relative:.3g} of the largest"
            f" output), cosine {self.error.cosine:.6f}" + (" (on random inputs)" if self.random_inputs else ""),
            "measured:",
            *(f"  {each}  cosine {error.cosine:.6f}" for each, error in zip(self.measured, self.errors, strict=True)),
        ]
        return "\n".join(lines)
