"""Notebooks that run a package's trained model and plot the results. `python -m examples.gallery` runs them."""
