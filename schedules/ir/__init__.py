"""TensorIR helpers: expressions, accesses, stages, inlining."""
