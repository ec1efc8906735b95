"""`compile`: from a model to a verified module, and its manifest."""
