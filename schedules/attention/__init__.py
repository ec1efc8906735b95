"""Attention as one kernel: scores, softmax and weighted sums."""
