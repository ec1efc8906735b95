"""Contents of a model or a module, determined without running it."""
