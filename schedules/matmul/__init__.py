"""Matrix products: dense, integer, bfloat16, grouped, sparse."""
