"""The techniques that a recipe can name: one module each, discovered automatically."""
