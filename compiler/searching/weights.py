"""Weights of torch nets in files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from compiler.artifact.storage import write_atomically
from compiler.errors import StorageError


def write_weights(net: torch.nn.Module, path: Path) -> None:
    """Raises StorageError. A tensor that several names share is written once for each."""
    contents = save({name: each.detach().cpu().clone().contiguous() for name, each in net.state_dict().items()})
    write_atomically(path, [contents])


def read_weights(net: torch.nn.Module, path: Path) -> None:
    """Raises StorageError: the file is damaged, or of another net."""
    like = net.state_dict()
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} holds no weights: {error}", "remove it: they are trained anew") from error
    if {name: each.shape for name, each in found.items()} != {name: each.shape for name, each in like.items()}:
        raise StorageError(f"{path} holds the weights of another net", "remove it, or name another storage=")
    net.load_state_dict(found)


def digest_of(net: torch.nn.Module) -> str:
    """Digest of all numbers of a net, by their names."""
    digest = hashlib.sha256()
    for name, each in sorted(net.state_dict().items()):
        digest.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
        digest.update(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
