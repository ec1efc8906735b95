"""`compile`: from a model to a verified module, and what its manifest says."""
