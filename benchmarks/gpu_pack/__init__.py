"""Packs for a machine that has a driver and a graphics processor and nothing else: modules, references, programs."""
