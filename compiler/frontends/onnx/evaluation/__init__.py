"""Nodes whose inputs are known while importing, evaluated there: exported shape computations vanish."""
