"""Candidates that have been trained, in a folder beside the storage: a search that was stopped trains none of them
again."""

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
    """Weights by what they were trained from and how; layers are rounded after training, so precisions do not matter.

    Args:
        folder: made with the first net; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def path(
        self, net: torch.nn.Module, config: Config, options: SearchOptions, finetunes: bool, epochs: int
    ) -> Path | None:
        """File of a candidate's weights; None where they are not kept.

        Args:
            net: before it is trained.
            finetunes: by `train`.
            epochs: epochs of distilling.
        """
        if self._folder is None:
            return None
        from compiler.searching.supernet import digest_of

        structure = sorted((name, option) for name, option in config.items() if not name.startswith("precision "))
        told = [digest_of(net), structure, finetunes, epochs, options.learning_rate, options.seed]
        return self._folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]}.safetensors"

    def read_into(self, net: torch.nn.Module, path: Path | None) -> bool:
        """Give a net the weights that were kept; whether there are any. Raises StorageError."""
        if path is None or not path.exists():
            return False
        from compiler.searching.supernet import read_weights

        read_weights(net, path)
        return True

    def keep(self, net: torch.nn.Module, path: Path | None) -> None:
        """Raises StorageError."""
        if path is None:
            return
        from compiler.searching.supernet import write_weights

        with storage_errors(path.parent, "made", "the folder "):
            path.parent.mkdir(exist_ok=True)
        write_weights(net, path)
