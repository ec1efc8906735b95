"""The hostile suite: models whose addresses and loop bounds depend on values, run with invalid and extreme values.

Each run is compared with a reference (ONNX Runtime, PyTorch), and runs twice with every buffer between inaccessible
pages: if the reference refuses, a module must raise InputError, or the documentation must say what it computes.
"""
