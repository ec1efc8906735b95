"""Table of instructions that multiply and accumulate groups of narrow operands:
`schedules.instructions.dot_products.table`."""
