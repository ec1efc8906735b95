"""Instruction sets: dot products, permutations, conversions, vector math, and clean-up of emitted code."""
