"""`compile`: converts a model to a verified module with its manifest."""
