"""Loop nests, parallel loops and register tiles: how kernels are emitted."""
