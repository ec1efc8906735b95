"""The techniques that a recipe can name: one module each, found by itself."""
