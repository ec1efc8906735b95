"""Contents of a model or a module, found without running it."""
