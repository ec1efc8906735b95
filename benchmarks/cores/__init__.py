"""Speedups over one core of nets compiled for many, modelled and, as far as this machine has cores, measured."""
