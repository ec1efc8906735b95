"""Notebooks: each goes from a package's trained model to a picture. `python -m examples.gallery` runs them."""
