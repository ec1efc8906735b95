"""Attention over the first rows of a cache of keys and values, which are read where they lie."""
