"""What a model or a module holds, without running it."""
