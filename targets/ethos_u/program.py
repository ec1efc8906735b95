"""A compiled segment: its command stream, weights, and tensor locations; as bytes in a module file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

Array = np.ndarray
_MAGIC = b"TWEU1\n"


@dataclass(frozen=True)
class TensorLocation:
    """Location of a tensor: region, offset and size in bytes."""

    region: int
    offset: int
    size: int


@dataclass(frozen=True)
class Program:
    """Program of an Ethos-U.

    Attributes:
        accelerator: the accelerator that it was compiled for.
        commands: including the header that Arm's driver reads.
        weights: read only, in the region `weight_region`.
        scratch: bytes of working memory by region.
        graph: its TOSA graph, for an accelerator whose commands cannot be simulated here; otherwise empty.
    """

    accelerator: str
    commands: bytes
    weights: bytes
    weight_region: int
    scratch: dict[int, int]
    inputs: tuple[TensorLocation, ...]
    outputs: tuple[TensorLocation, ...]
    graph: bytes = b""

    def to_bytes(self) -> Array:
        """Bytes (uint8): magic, length of the header, header (JSON), commands, weights, graph."""
        header = json.dumps(
            {
                "accelerator": self.accelerator,
                "commands": len(self.commands),
                "weights": len(self.weights),
                "graph": len(self.graph),
                "weight_region": self.weight_region,
                "scratch": list(self.scratch.items()),
                "inputs": [asdict(place) for place in self.inputs],
                "outputs": [asdict(place) for place in self.outputs],
            }
        ).encode()
        parts = [_MAGIC, len(header).to_bytes(4, "little"), header, self.commands, self.weights, self.graph]
        return np.frombuffer(b"".join(parts), np.uint8)

    @classmethod
    def from_bytes(cls, data: bytes) -> Program:
        """The program in bytes. Raises ValueError if there is none."""
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("this is not a program of an Ethos-U")
        start = len(_MAGIC) + 4
        end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
        header = json.loads(data[start:end])
        weights = end + header["commands"]
        graph = weights + header["weights"]
        if len(data) != graph + header["graph"]:
            raise ValueError("a program of an Ethos-U is cut short")
        return cls(
            header["accelerator"],
            data[end:weights],
            data[weights:graph],
            header["weight_region"],
            {int(region): int(size) for region, size in header["scratch"]},
            _locations(header["inputs"]),
            _locations(header["outputs"]),
            data[graph:],
        )


def _locations(entries: Sequence[dict[str, int]]) -> tuple[TensorLocation, ...]:
    return tuple(TensorLocation(**entry) for entry in entries)


def is_program(array: object) -> bool:
    """True if an array of a module holds a program."""
    values = np.asarray(array)
    return values.dtype == np.uint8 and values.ndim == 1 and values[: len(_MAGIC)].tobytes() == _MAGIC
