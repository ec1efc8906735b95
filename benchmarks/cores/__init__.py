"""Multi-core speedups of compiled networks, modelled and, as far as this machine has cores, measured."""
