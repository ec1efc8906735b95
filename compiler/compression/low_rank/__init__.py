"""Low-rank factorization with the accuracy measured: `factorize`."""

from compiler.compression.low_rank.driver import factorize

__all__ = ["factorize"]
