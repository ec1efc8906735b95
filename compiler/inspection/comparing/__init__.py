"""The two sides of a comparison: the compiled model, and another runtime."""
