"""Attention over the first rows of a cache of keys and values, without copying them."""
