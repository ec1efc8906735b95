"""Trained candidates, in a folder next to the storage: a resumed search does not train them again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import storage_errors
from compiler.searching.knobs import Config
from compiler.searching.settings import SearchOptions

if TYPE_CHECKING:
    import torch


class TrainedNets:
    """Weights by their origin and training; layers are rounded after training, so precisions do not matter. `folder`:
    created with the first net; None: nothing is stored."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def path(
        self, net: torch.nn.Module, config: Config, options: SearchOptions, finetunes: bool, epochs: int
    ) -> Path | None:
        """File of a candidate's weights; None if they are not stored.

        Args:
            net: the net before training.
            finetunes: whether it is trained by `train`.
            epochs: epochs of distillation.
        """
        if self._folder is None:
            return None
        from compiler.searching.supernet import digest_of

        structure = sorted((name, option) for name, option in config.items() if not name.startswith("precision "))
        told = [digest_of(net), structure, finetunes, epochs, options.learning_rate, options.seed]
        return self._folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]}.safetensors"

    def read_into(self, net: torch.nn.Module, path: Path | None) -> bool:
        """Load stored weights into a net; return whether there are any. Raises StorageError."""
        if path is None or not path.exists():
            return False
        from compiler.searching.supernet import read_weights

        read_weights(net, path)
        return True

    def keep(self, net: torch.nn.Module, path: Path | None) -> None:
        """Store a net's weights. Raises StorageError."""
        if path is None:
            return
        from compiler.searching.supernet import write_weights

        with storage_errors(path.parent, "made", "the folder "):
            path.parent.mkdir(exist_ok=True)
        write_weights(net, path)
