"""Weight sharing with the accuracy measured: `share_weights`."""

from compiler.compression.weight_sharing.driver import share_weights

__all__ = ["share_weights"]
