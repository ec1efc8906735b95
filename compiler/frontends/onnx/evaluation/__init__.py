"""Nodes whose inputs are known while importing, evaluated at import, which removes exported shape computations."""
