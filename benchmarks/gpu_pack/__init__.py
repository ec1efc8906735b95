"""Packs for a machine with only a driver and a GPU: modules, references, programs."""
