"""The hostile suite: models whose addresses and loop bounds depend on values, at values that nobody should give them.

Each run is compared with a reference (ONNX Runtime, PyTorch), and runs twice with every buffer between inaccessible
pages: where the reference refuses, a module raises an InputError, or the documentation says what it computes.
"""
