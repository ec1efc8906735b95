"""Rules for kernels of any operator: elementwise chains, reductions, transposes, copies."""
